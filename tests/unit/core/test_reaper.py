"""What becomes of executions that nobody takes care of: ended as lost or never started, or run again."""

from __future__ import annotations

import anyio
import pytest

from sandbox_adapters.control.local import LocalControlChannel
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.application.reaper import Reaper
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import LeaseLost, OwnerUnreachable
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.queue import QueueItem
from sandbox_core.ports.store import Claim
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.samples import cancelled, exited, pending, printed

LEASE_SECONDS = 9.0

pytestmark = pytest.mark.anyio


class Fleet:
    """A store and a queue that nodes share."""

    def __init__(self, *, max_depth: int = 10) -> None:
        self.clock = FakeClock()
        self.store = MemoryStateStore(self.clock)
        self.queue = LocalQueue(clock=self.clock, max_depth=max_depth)

    def reaper(self, name: str = "reaper") -> Reaper:
        return Reaper(
            store=self.store, queue=self.queue, clock=self.clock, node=NodeId(name), lease_seconds=LEASE_SECONDS
        )

    def service(self) -> ExecutionService:
        return ExecutionService(
            store=self.store,
            queue=self.queue,
            control=LocalControlChannel(),
            clock=self.clock,
            ceiling=ExecutionPolicy(),
            defaults=ExecutionPolicy(),
        )

    async def submitted(self, *, queue_timeout_seconds: float | None = 30, retry_safe: bool = False) -> Execution:
        execution = pending(self.clock, queue_timeout_seconds=queue_timeout_seconds, retry_safe=retry_safe)
        await self.store.create(execution)
        await self.queue.put(QueueItem(execution.id, execution.principal, None, execution.created_at))
        return execution

    async def run_and_die(self, *, prepared: bool = True) -> Claim:
        """Let a node take the next execution, print, and fall silent."""
        delivery = await self.queue.take(_anything)
        claim = await self.store.claim(delivery.item.execution_id, NodeId("dead"), lease_seconds=LEASE_SECONDS)
        await self.queue.done(delivery)
        if prepared:
            ready = claim.execution.apply(claim.execution.prepare(Isolation("r", "1", True)))
            await self.store.append(claim.lease, [printed(self.clock, b"so far")], ready)
        await self.clock.advance(LEASE_SECONDS)
        return claim


async def _anything(_: QueueItem) -> bool:
    return True


async def test_what_waited_too_long_never_started_and_says_how_long() -> None:
    fleet = Fleet()
    execution = await fleet.submitted(queue_timeout_seconds=30)
    await fleet.clock.advance(31)
    assert list(await fleet.store.lapsed()) == [execution.id]
    await fleet.reaper().settle(execution.id)
    page = await fleet.store.read(execution.id)
    assert page.execution.status is ExecutionStatus.FAILED
    outcome = page.execution.outcome
    assert outcome is not None
    assert outcome.reason is TerminationReason.NEVER_STARTED
    assert outcome.usage.queued_seconds == 31
    assert outcome.message is not None
    assert "waited 31.0 s" in outcome.message
    assert "queue_timeout_seconds of 30" in outcome.message
    assert [event.kind for event in page.events] == [EventKind.ERROR]
    assert page.events[0].fields["reason"] == "never_started"
    assert await fleet.queue.depth() == 0


async def test_one_of_many_reapers_ends_what_waited_too_long() -> None:
    fleet = Fleet()
    execution = await fleet.submitted()
    await fleet.clock.advance(60)
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(fleet.reaper(f"r{number}").settle, execution.id)
    assert (await fleet.store.read(execution.id)).last_seq == 1


async def test_what_died_after_its_start_is_lost() -> None:
    fleet = Fleet()
    await fleet.submitted()
    claim = await fleet.run_and_die()
    await fleet.reaper().settle(claim.lease.execution_id)
    execution = await fleet.store.load(claim.lease.execution_id)
    assert execution.outcome is not None
    assert execution.outcome.reason is TerminationReason.LOST
    assert execution.outcome.message == "The node that ran it is gone; what it printed until then is kept."
    assert await fleet.queue.depth() == 0


async def test_what_died_before_it_told_of_its_start_is_lost_too_and_says_so() -> None:
    fleet = Fleet()
    await fleet.submitted()
    claim = await fleet.run_and_die(prepared=False)
    await fleet.reaper().settle(claim.lease.execution_id)
    outcome = (await fleet.store.load(claim.lease.execution_id)).outcome
    assert outcome is not None
    assert outcome.reason is TerminationReason.LOST
    assert outcome.message is not None
    assert "it may have run, or not" in outcome.message


async def test_what_is_retry_safe_is_run_again_by_one_of_many() -> None:
    fleet = Fleet()
    await fleet.submitted(retry_safe=True)
    old = await fleet.run_and_die()
    execution_id = old.lease.execution_id
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(fleet.reaper(f"r{number}").settle, execution_id)
    page = await fleet.store.read(execution_id)
    assert (page.execution.status, page.execution.attempt) == (ExecutionStatus.PENDING, 2)
    assert [event.kind for event in page.events] == [EventKind.STDOUT, EventKind.RETRY]
    assert page.events[1].fields == {"attempt": 2, "max_attempts": 3}
    delivery = await fleet.queue.take(_anything)
    assert delivery.item.execution_id == execution_id
    assert await fleet.queue.depth() == 0
    with pytest.raises(LeaseLost):
        await fleet.store.append(old.lease, [printed(fleet.clock, b"late")])


async def test_the_third_attempt_is_the_last() -> None:
    fleet = Fleet()
    await fleet.submitted(retry_safe=True)
    for _ in range(3):
        claim = await fleet.run_and_die()
        await fleet.reaper().settle(claim.lease.execution_id)
    page = await fleet.store.read(claim.lease.execution_id)
    assert page.execution.attempt == 3
    assert page.execution.outcome is not None
    assert page.execution.outcome.reason is TerminationReason.LOST
    assert str(page.execution.outcome.message).endswith("It was attempt 3 of at most 3.")
    kinds = [EventKind.STDOUT, EventKind.RETRY] * 2 + [EventKind.STDOUT, EventKind.ERROR]
    assert [event.kind for event in page.events] == kinds
    assert [event.seq for event in page.events] == [1, 2, 3, 4, 5, 6]


async def test_one_that_finds_no_place_again_is_lost_since_it_did_start_once() -> None:
    fleet = Fleet()
    await fleet.submitted(queue_timeout_seconds=30, retry_safe=True)
    claim = await fleet.run_and_die()
    await fleet.reaper().settle(claim.lease.execution_id)
    await fleet.clock.advance(30)
    await fleet.reaper().settle(claim.lease.execution_id)
    outcome = (await fleet.store.load(claim.lease.execution_id)).outcome
    assert outcome is not None
    assert outcome.reason is TerminationReason.LOST
    assert outcome.usage.queued_seconds == 30
    assert await fleet.queue.depth() == 0


async def test_one_that_waits_again_can_be_cancelled() -> None:
    fleet = Fleet()
    await fleet.submitted(retry_safe=True)
    claim = await fleet.run_and_die()
    await fleet.reaper().settle(claim.lease.execution_id)
    again = await fleet.store.load(claim.lease.execution_id)
    await fleet.store.finish_unclaimed(cancelled(again, fleet.clock), [exited(fleet.clock)])
    await fleet.reaper().settle(again.id)
    assert (await fleet.store.load(again.id)).status is ExecutionStatus.CANCELLED


@pytest.mark.parametrize("retry_safe", [True, False])
async def test_a_cancel_while_the_owner_is_dead_ends_what_would_be_run_again(retry_safe: bool) -> None:
    fleet, answers = Fleet(), list[bool]()
    await fleet.submitted(retry_safe=retry_safe)
    claim = await fleet.run_and_die()
    execution_id, service = claim.lease.execution_id, fleet.service()
    if not retry_safe:
        with pytest.raises(OwnerUnreachable):
            await service.cancel(LOCAL_PRINCIPAL, execution_id)
        return

    async def cancel() -> None:
        answers.append(await service.cancel(LOCAL_PRINCIPAL, execution_id))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await fleet.clock.settle()
        assert answers == []
        await fleet.reaper().settle(execution_id)
    assert answers == [True]
    page = await fleet.store.read(execution_id)
    assert page.execution.status is ExecutionStatus.CANCELLED
    assert [event.kind for event in page.events] == [EventKind.STDOUT, EventKind.RETRY, EventKind.CANCELLED]
    assert page.events[-1].data == b"Cancelled before it started again."


async def test_a_full_queue_leaves_it_pending_until_its_time_is_over() -> None:
    fleet = Fleet(max_depth=1)
    await fleet.submitted(retry_safe=True)
    claim = await fleet.run_and_die()
    await fleet.submitted(queue_timeout_seconds=None)
    await fleet.reaper().settle(claim.lease.execution_id)
    assert (await fleet.store.load(claim.lease.execution_id)).status is ExecutionStatus.PENDING
    await fleet.clock.advance(30)
    await fleet.reaper().settle(claim.lease.execution_id)
    assert (await fleet.store.load(claim.lease.execution_id)).status is ExecutionStatus.FAILED


async def test_what_moved_on_is_left_alone() -> None:
    fleet = Fleet()
    execution = await fleet.submitted(queue_timeout_seconds=None)
    await fleet.reaper().settle(execution.id)
    assert (await fleet.store.load(execution.id)).status is ExecutionStatus.PENDING
    claim = await fleet.store.claim(execution.id, NodeId("alive"), lease_seconds=LEASE_SECONDS)
    await fleet.reaper().settle(execution.id)
    assert (await fleet.store.load(execution.id)) == claim.execution
