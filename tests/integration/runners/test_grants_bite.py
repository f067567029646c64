"""Each control of a granted directory, taken away: the case that needs it fails then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_adapters.runners import grant_plan
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.child import grant_mounts
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.grant_plan import Plan
from tests.integration.runners import grant_cases
from tests.integration.runners.grant_cases import Case, place, remove

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def top() -> Iterator[Path]:
    path = place()
    yield path
    remove(path)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (grant_mounts.LOCK, grant_cases.what_the_host_runs_is_read_only),
        (grant_mounts.LOCK, grant_cases.hooks_that_a_configuration_names_are_read_only),
        (grant_mounts.LOCK, grant_cases.a_hook_that_lies_among_the_files_is_read_only),
        (grant_mounts.PIN, grant_cases.what_the_host_runs_is_read_only),
        (grant_mounts.HIDE, grant_cases.denied_files_and_directories_are_empty_and_stay),
        (grant_mounts.HIDE, grant_cases.sockets_of_the_host_are_hidden),
        (grant_mounts.HIDE, grant_cases.pipes_of_the_host_are_hidden),
    ],
)
async def test_without_its_mounts_a_case_fails(
    runner: BubblewrapRunner, top: Path, monkeypatch: pytest.MonkeyPatch, kind: str, case: Case
) -> None:
    make_plan = grant_plan.make_plan

    def weak(grants: Any) -> Plan:
        plan = make_plan(grants)
        plan.steps = [step for step in plan.steps if step["kind"] != kind]
        return plan

    monkeypatch.setattr("sandbox_adapters.runners.granted.make_plan", weak)
    with pytest.raises((AssertionError, FileNotFoundError)):
        await case(runner, top)


@pytest.mark.parametrize(
    "case",
    [
        grant_cases.names_that_the_host_would_run_are_put_aside,
        grant_cases.hiding_places_do_not_help,
        grant_cases.denied_names_that_did_not_exist_are_put_aside,
    ],
)
async def test_without_the_look_at_the_end_a_case_fails(
    runner: BubblewrapRunner, top: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(Plan, "check", lambda _: ([], 0))
    with pytest.raises(AssertionError):
        await case(runner, top)


@pytest.mark.parametrize(
    ("control", "case"),
    [
        (Control.NO_SET_ID_BITS, grant_cases.no_set_user_id_program_is_left_behind),
        (Control.NO_LINKS_IN_GRANTS, grant_cases.a_directory_exchanged_after_the_look_is_not_mounted),
    ],
)
async def test_without_a_control_of_the_launchers_child_a_case_fails(
    anyio_backend: str, top: Path, control: Control, case: Case
) -> None:
    async with BubblewrapRunner(controls=Controls(frozenset({control}))) as weak:
        assert control not in (await grant_cases.layers(weak, top))
        with pytest.raises(AssertionError):
            await case(weak, top)
