"""Places, fairness, the bounded queue, cancelling while queued, lost owners."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.application.admission import share_of_one
from sandbox_core.domain.errors import LeaseLost, ServerDraining, ServerFull
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, Principal
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ResourceLimits
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Lease, Quota
from sandbox_core.testing.scripted_runner import Pause, Print, Script

from .conftest import OpenHouse

SLOW = Script(steps=[Pause(1000)])
A, B = Principal("a"), Principal("b")


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_all_principals_but_one_cannot_take_the_last_place(total: int, principals: int) -> None:
    share = share_of_one(total, principals)
    assert 1 <= share <= total
    if 2 <= principals <= total:
        assert share * (principals - 1) < total


@pytest.mark.anyio
async def test_no_more_than_the_nodes_places_run_at_once(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(3, 10, 10)) as home:
        ids = [await home.submit(f"{n}", session=f"s{n}") for n in range(5)]
        await home.started(3)
        await home.clock.settle()
        assert home.runner.running == 3
        await home.service.cancel(LOCAL_PRINCIPAL, ids[0])
        await home.ended(ids[0])
        await home.started(3)
        assert (await home.service.get(LOCAL_PRINCIPAL, ids[4])).status is ExecutionStatus.PENDING


@pytest.mark.anyio
async def test_a_session_at_its_limit_waits_and_does_not_hold_up_another(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(10, 10, 2)) as home:
        crowded = [await home.submit(f"{n}", session="crowded") for n in range(4)]
        other = await home.submit("x", session="other")
        await home.started(3)
        await home.clock.settle()
        assert home.runner.running == 3
        assert (await home.service.get(LOCAL_PRINCIPAL, other)).status is ExecutionStatus.RUNNING
        assert (await home.service.get(LOCAL_PRINCIPAL, crowded[2])).status is ExecutionStatus.PENDING
        await home.service.cancel(LOCAL_PRINCIPAL, crowded[0])
        await home.ended(crowded[0])
        await home.started(3)
        assert (await home.service.get(LOCAL_PRINCIPAL, crowded[2])).status is ExecutionStatus.RUNNING


@pytest.mark.anyio
async def test_one_principal_cannot_take_every_place(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(4, share_of_one(4, 2), 10)) as home:
        for n in range(8):
            await home.submit(f"{n}", principal=A)
        mine = await home.submit("x", principal=B)
        await home.started(4)
        assert (await home.service.get(B, mine)).status is ExecutionStatus.RUNNING


@pytest.mark.anyio
async def test_a_full_queue_says_when_to_try_again_and_stores_nothing(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(1, 10, 10), max_queued=2) as home:
        await home.submit("0")
        await home.started(1)
        for n in range(2):
            await home.submit(f"{n}")
        with pytest.raises(ServerFull) as full:
            await home.submit("too many")
        assert full.value.retry_after_seconds >= 1
        assert len((await home.service.list_page(LOCAL_PRINCIPAL)).executions) == 3


@pytest.mark.anyio
async def test_a_queued_execution_is_cancelled_without_a_start(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(1, 10, 10)) as home:
        first, second = await home.submit("0"), await home.submit("1")
        await home.started(1)
        assert await home.service.cancel(LOCAL_PRINCIPAL, second)
        execution = await home.ended(second)
        assert execution.status is ExecutionStatus.CANCELLED
        assert [event.kind for event in await home.events(second)] == [EventKind.CANCELLED]
        await home.service.cancel(LOCAL_PRINCIPAL, first)
        await home.ended(first)
        await home.clock.settle()
        assert len(home.runner.launches) == 1


@pytest.mark.anyio
async def test_draining_ends_what_waits_as_never_started(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(1, 10, 10)) as home:
        await home.submit("0")
        waiting = await home.submit("1")
        await home.started(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(home.ended, waiting)
            home.supervisor.hurry()
            await home.supervisor.drain(grace_seconds=0)
        execution = await home.service.get(LOCAL_PRINCIPAL, waiting)
        assert execution.outcome is not None
        assert execution.outcome.reason is TerminationReason.NEVER_STARTED
        with pytest.raises(ServerDraining):
            await home.submit("2")


@pytest.mark.anyio
async def test_a_running_execution_whose_owner_is_silent_is_marked_lost_once(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(1, 10, 10)) as home:
        await home.submit("mine")
        await home.started(1)
        gone = await home.submit("of a node that dies")
        claim = await home.store.claim(gone, NodeId("dead"), lease_seconds=15)
        await home.store.append(claim.lease, [EventDraft(EventKind.STDOUT, home.clock.now(), b"so far")])
        await home.clock.advance(14)
        assert not (await home.service.get(LOCAL_PRINCIPAL, gone)).is_terminal
        await home.clock.advance(8)
        execution = await home.ended(gone)
        assert execution.outcome is not None
        assert execution.outcome.reason is TerminationReason.LOST
        assert [event.kind for event in await home.events(gone)] == [EventKind.STDOUT, EventKind.ERROR]
        with pytest.raises(LeaseLost):
            await home.store.append(claim.lease, [EventDraft(EventKind.STDOUT, home.clock.now(), b"late")])
        assert home.runner.running == 1


@pytest.mark.anyio
async def test_a_run_whose_lease_was_taken_over_is_killed_and_writes_no_more(house: OpenHouse) -> None:
    async with house(default=SLOW) as home:
        execution_id = await home.submit("x")
        await home.started(1)
        home.clock._monotonic += 1000  # a pause of the whole process: no renewal ran meanwhile
        claim = await home.store.seize(execution_id, NodeId("other"), lease_seconds=1e6)
        await home.clock.advance(20)
        with anyio.fail_after(30):
            while home.runner.running:
                await home.clock.settle()
        await home.store.append(claim.lease, [EventDraft(EventKind.STDOUT, home.clock.now(), b"theirs")])
        assert not (await home.service.get(LOCAL_PRINCIPAL, execution_id)).is_terminal


@pytest.mark.anyio
async def test_a_flooding_run_whose_lease_was_taken_over_ends(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = Script(steps=[Print(b"x" * 65_536) for _ in range(40)] + [Pause(1000)])
    async with house(default=flood) as home:

        async def lose_it_late(lease: Lease, *_: object) -> int:
            await home.clock.settle()  # meanwhile the pumps fill the buffer and wait for room
            raise LeaseLost(lease.execution_id)

        monkeypatch.setattr(home.store, "append", lose_it_late)
        await home.submit("x", limits=ResourceLimits(max_output_bytes=1 << 20))
        await home.started(1)
        with anyio.fail_after(30):
            while home.runner.running:
                await home.clock.settle()


@pytest.mark.anyio
async def test_what_waits_too_long_is_ended_where_it_waits_and_its_waiters_are_told(house: OpenHouse) -> None:
    async with house(default=SLOW, quota=Quota(per_node=1, per_principal=1, per_session=1)) as home:
        await home.submit("x", limits=ResourceLimits(timeout_seconds=200))
        await home.started(1)
        late = await home.submit("x", limits=ResourceLimits(queue_timeout_seconds=2))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(home.ended, late)
            await home.clock.advance(2)
            assert not (await home.service.get(LOCAL_PRINCIPAL, late)).is_terminal
            # A third of a lease at most, once the first lease after the start is over.
            await home.clock.advance(12)
        execution = await home.ended(late)
        assert execution.outcome is not None
        assert (execution.outcome.reason, execution.started_at) == (TerminationReason.NEVER_STARTED, None)
        assert await home.queue.depth() == 0
        assert len(home.runner.launches) == 1


@pytest.mark.anyio
async def test_the_same_idempotency_key_returns_the_first(house: OpenHouse) -> None:
    async with house(default=SLOW) as home:
        first = await home.submit("x", key="k")
        assert await home.submit("x", key="k") == first
        assert await home.submit("x", key="k", principal=A) != first
        await home.started(2)
        await home.clock.settle()
        assert len(home.runner.launches) == 2


@pytest.mark.anyio
async def test_waits_end_early_when_the_replica_goes_and_the_execution_goes_on(house: OpenHouse) -> None:
    async with house(default=SLOW) as home:
        execution_id = await home.submit("x")
        await home.started(1)
        answers: list[bool] = []

        async def wait() -> None:
            answers.append(await home.service.wait(LOCAL_PRINCIPAL, execution_id, until_terminal=True))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                tasks.start_soon(wait)
                await home.clock.settle()
                assert answers == []
                home.service.end_waits()
            await wait()
        assert answers == [False] * 3
        assert home.runner.running == 1
