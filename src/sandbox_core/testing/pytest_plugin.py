"""Pytest plugin: fixtures for testing with scripted executions. Loaded by pytest wherever this is installed.

Fixtures:
    fake_clock: a FakeClock at its default start.
    scripted_runner: makes a ScriptedRunner on `fake_clock` from scripts:
        `runner = scripted_runner({"make test": Script(stdout=b"ok", exit_code=0)})`.

Nothing is autouse, and loading the plugin imports nothing else of this distribution.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandbox_core.testing.fake_clock import FakeClock
    from sandbox_core.testing.scripted_runner import ScriptedRunner

_SUITES = (
    "clock_contract",
    "control_contract",
    "fleet_contract",
    "queue_contract",
    "queue_contract_bounds",
    "queue_contract_delivery",
    "queue_contract_fairness",
    "queue_contract_labels",
    "runner_contract",
    "runner_contract_exits",
    "runner_contract_life",
    "runner_contract_streams",
    "runner_harness",
    "store_contract",
    "store_contract_documents",
    "store_contract_expiry",
    "store_contract_leases",
    "store_contract_listing",
    "store_contract_logs",
    "store_contract_places",
    "store_contract_queueing",
    "store_contract_waits",
    "store_machine",
    "store_model",
)

# A failed assert in a contract suite then shows both sides, as in the user's own tests.
pytest.register_assert_rewrite(
    *(name for suite in _SUITES if (name := f"sandbox_core.testing.{suite}") not in sys.modules)
)


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that moves only when the test advances it."""
    from sandbox_core.testing.fake_clock import FakeClock

    return FakeClock()


@pytest.fixture
def scripted_runner(fake_clock: FakeClock) -> Callable[..., ScriptedRunner]:
    """Make runners that start no process: `scripted_runner({"make test": Script(stdout=b"ok")})`, on `fake_clock`.

    Takes what ScriptedRunner takes; `clock` may be given to replace the fake one.
    """
    from sandbox_core.testing.scripted_runner import ScriptedRunner

    return partial(ScriptedRunner, clock=fake_clock)
