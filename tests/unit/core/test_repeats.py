"""What may happen twice: a request under one key, and a run whose node was cut off."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from sandbox_core.application.reaper import Reaper
from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import IdempotencyConflict, InvalidArgument
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.queue import QueueItem
from sandbox_core.ports.store import Lease
from sandbox_core.testing.scripted_runner import Pause, Print, Script

from .conftest import House, OpenHouse

SLOW = Script(steps=[Print(b"begun\n"), Pause(10), Print(b"done\n")])

pytestmark = pytest.mark.anyio


def _request(**changed: object) -> Submission:
    asked: dict[str, object] = {"command": Command(shell="x"), "idempotency_key": "k", **changed}
    return Submission(**asked)  # type: ignore[arg-type]  # the names are checked by the class


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"command": Command(shell="y")}, "command"),
        ({"command": Command(shell="x", stdin=b"in")}, "command"),
        ({"policy": ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=7))}, "policy"),
        ({"retry_safe": True}, "retry_safe"),
    ],
)
async def test_a_key_that_was_used_for_something_else_is_a_conflict(
    house: OpenHouse, changed: dict[str, object], field: str
) -> None:
    async with house(default=SLOW) as home:
        first = await home.service.submit(LOCAL_PRINCIPAL, _request())
        await home.started(1)
        with pytest.raises(IdempotencyConflict) as conflict:
            await home.service.submit(LOCAL_PRINCIPAL, _request(**changed))
        assert (conflict.value.execution_id, conflict.value.fields) == (first.id, (field,))
        await home.clock.settle()
        assert len(home.runner.launches) == 1
        assert len((await home.service.list_page(LOCAL_PRINCIPAL)).executions) == 1


async def test_a_key_returns_the_execution_as_it_is_now_also_when_it_has_ended(house: OpenHouse) -> None:
    async with house(default=Script(stdout=b"out")) as home:
        first = await home.service.submit(LOCAL_PRINCIPAL, _request())
        ended = await home.ended(first.id)
        assert await home.service.submit(LOCAL_PRINCIPAL, _request()) == ended


@pytest.mark.parametrize("key", ["", "x" * 129, "with space", "a/b", "ż", "a\n"])
async def test_a_malformed_key_is_refused(house: OpenHouse, key: str) -> None:
    async with house() as home:
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            await home.service.submit(LOCAL_PRINCIPAL, _request(idempotency_key=key))
        assert (await home.service.list_page(LOCAL_PRINCIPAL)).executions == ()


async def test_what_takes_input_while_it_runs_is_not_retry_safe(house: OpenHouse) -> None:
    async with house() as home:
        with pytest.raises(InvalidArgument, match="retry_safe"):
            await home.submit("x", interactive=True, retry_safe=True)


async def test_retry_safe_is_yes_or_no_and_nothing_else_is_stored(house: OpenHouse) -> None:
    async with house() as home:
        with pytest.raises(InvalidArgument, match=r"^retry_safe"):
            await home.service.submit(LOCAL_PRINCIPAL, _request(retry_safe="yes"))
        assert (await home.service.list_page(LOCAL_PRINCIPAL)).executions == ()


async def test_a_node_that_was_cut_off_ends_its_own_attempt_before_it_starts_the_next(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(default=SLOW) as home:
        execution_id = await home.submit("x", retry_safe=True)
        await home.started(1)
        await _cut_off(home, monkeypatch)
        other = Reaper(store=home.store, queue=home.queue, clock=home.clock, node=NodeId("other"), lease_seconds=9)
        await other.settle(execution_id)
        with anyio.fail_after(30):
            while len(home.runner.launches) < 2:
                await home.clock.settle()
        assert home.runner.running == 1
        monkeypatch.undo()
        await home.clock.advance(10)
        execution = await home.ended(execution_id)
        assert (execution.status, execution.attempt) == (ExecutionStatus.COMPLETED, 2)
        kinds = [event.kind for event in await home.events(execution_id)]
        assert [kind for kind in kinds if kind in (EventKind.RETRY, EventKind.EXIT)] == [
            EventKind.RETRY,
            EventKind.EXIT,
        ]
        assert home.supervisor.running == 0


async def test_an_item_of_what_runs_here_changes_nothing(house: OpenHouse) -> None:
    async with house(default=SLOW) as home:
        execution_id = await home.submit("x")
        await home.started(1)
        execution = await home.service.get(LOCAL_PRINCIPAL, execution_id)
        await home.queue.put(QueueItem(execution_id, LOCAL_PRINCIPAL, None, execution.created_at))
        with anyio.fail_after(30):
            while await home.queue.depth():
                await home.clock.settle()
        await home.clock.settle()
        assert (home.supervisor.running, home.runner.running) == (1, 1)
        # Its lease is renewed on.
        await home.clock.advance(9)
        assert list(await home.store.lapsed()) == []
        await home.clock.advance(1)
        assert (await home.ended(execution_id)).status is ExecutionStatus.COMPLETED
        assert len(home.runner.launches) == 1


async def _cut_off(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the node believe that it renews, for longer than a lease."""

    async def pretend(leases: Sequence[Lease], *, lease_seconds: float) -> Sequence[Lease]:
        return leases

    monkeypatch.setattr(home.store, "renew", pretend)
    await home.clock.advance(9)
