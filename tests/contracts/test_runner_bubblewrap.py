"""BubblewrapRunner keeps the ProcessRunner contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.testing.runner_contract import ProcessRunnerContract


def satisfies_the_port(runner: BubblewrapRunner) -> ProcessRunner:
    """Checked by mypy."""
    return runner


class TestBubblewrapRunner(ProcessRunnerContract):
    isolates = True
    sees_closed_input = False
    # Two spares, and a third on its way, with their three pipes and the options each.
    descriptors_kept = 12

    @pytest.fixture
    async def runner(self, anyio_backend: str) -> AsyncIterator[BubblewrapRunner]:
        async with BubblewrapRunner() as runner:
            yield runner
