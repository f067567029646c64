"""StateStore contract: how long an execution may wait for its claim, and being put back to be run again."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from sandbox_core.domain.errors import ClaimRefused, ExecutionNotFound, IllegalTransition, LeaseLost
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.execution import MAX_ATTEMPTS, Execution
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim, ListQuery
from sandbox_core.testing.samples import (
    NODE,
    OTHER_NODE,
    cancelled,
    ended,
    exited,
    pending,
    printed,
    requeued,
    retried,
)
from sandbox_core.testing.store_harness import StoreHarness

_BOUND_SECONDS = 30


@pytest.mark.anyio
class QueueingContract:
    """What waits too long is named and starts no more; what is put back starts once more, and its old owner writes no
    more.
    """

    async def test_what_waits_too_long_is_named_and_starts_no_more(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock, queue_timeout_seconds=20))
        forever = await harness.store.create(pending(harness.clock))
        await harness.advance(19)
        assert list(await harness.store.lapsed()) == []
        await harness.advance(1)
        assert list(await harness.store.lapsed()) == [execution.id]
        with pytest.raises(ClaimRefused):
            await harness.store.claim(execution.id, NODE, lease_seconds=15)
        with pytest.raises(ClaimRefused):
            await harness.store.seize(execution.id, NODE, lease_seconds=15)
        await harness.store.finish_unclaimed(cancelled(execution, harness.clock), [exited(harness.clock)])
        assert list(await harness.store.lapsed()) == []
        assert (await harness.store.claim(forever.id, NODE, lease_seconds=15)).execution.node == NODE

    async def test_only_what_waits_too_long_is_ended_for_that(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock, queue_timeout_seconds=20))
        forever = await harness.store.create(pending(harness.clock))
        for each in (execution, forever):
            with pytest.raises(ClaimRefused):
                await harness.store.finish_unclaimed(cancelled(each, harness.clock), [], only_overdue=True)
        await harness.advance(20)
        with pytest.raises(ClaimRefused):
            await harness.store.finish_unclaimed(cancelled(forever, harness.clock), [], only_overdue=True)
        final = cancelled(execution, harness.clock)
        await harness.store.finish_unclaimed(final, [exited(harness.clock)], only_overdue=True)
        assert await harness.store.load(execution.id) == final

    async def test_a_claim_in_time_ends_the_waiting(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock, queue_timeout_seconds=20))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=50)
        await harness.advance(30)
        assert list(await harness.store.lapsed()) == []
        await harness.advance(20)
        assert list(await harness.store.lapsed()) == [execution.id]
        await harness.store.append(claim.lease, [exited(harness.clock)], ended(claim.execution, harness.clock))
        assert list(await harness.store.lapsed()) == []

    async def test_what_is_discarded_is_named_no_more(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock, queue_timeout_seconds=5))
        await harness.store.discard(execution.id)
        await harness.advance(10)
        assert list(await harness.store.lapsed()) == []

    async def test_a_lapsed_execution_is_put_back_and_claimed_again(self, harness: StoreHarness) -> None:
        old = await _claimed(harness)
        await harness.store.append(old.lease, [printed(harness.clock, b"first")])
        again = await _put_back(harness, old)
        assert await harness.store.load(again.id) == again
        assert (again.status, again.attempt, again.node) == (ExecutionStatus.PENDING, 2, None)
        listed = await harness.store.list_page(
            ListQuery(again.principal, statuses=frozenset({ExecutionStatus.PENDING}))
        )
        assert listed.executions == (again,)
        new = await harness.store.claim(again.id, OTHER_NODE, lease_seconds=15)
        assert new.lease.token > old.lease.token
        assert new.execution == again.apply(again.start(OTHER_NODE, harness.clock.now()))
        assert await harness.store.append(new.lease, [printed(harness.clock, b"second")]) == 3
        final = ended(new.execution, harness.clock)
        assert await harness.store.append(new.lease, [exited(harness.clock)], final) == 4
        page = await harness.store.read(again.id)
        assert [event.seq for event in page.events] == [1, 2, 3, 4]
        kinds = [EventKind.STDOUT, EventKind.RETRY, EventKind.STDOUT, EventKind.EXIT]
        assert [event.kind for event in page.events] == kinds
        assert (page.execution, page.execution.attempt) == (final, 2)

    async def test_no_owner_of_an_earlier_attempt_writes(self, harness: StoreHarness) -> None:
        old = await _claimed(harness)
        await harness.advance(15)
        reaper = await harness.store.seize(old.lease.execution_id, OTHER_NODE, lease_seconds=15)
        again = requeued(reaper.execution, harness.clock)
        await harness.store.append(reaper.lease, [retried(harness.clock)], again)
        for lease in (old.lease, reaper.lease):
            with pytest.raises(LeaseLost):
                await harness.store.append(lease, [printed(harness.clock, b"late")])
        assert list(await harness.store.renew([old.lease, reaper.lease], lease_seconds=15)) == []
        new = await harness.store.claim(again.id, NODE, lease_seconds=15)
        for lease in (old.lease, reaper.lease):
            with pytest.raises(LeaseLost):
                await harness.store.append(lease, [exited(harness.clock)], ended(reaper.execution, harness.clock))
        assert [lease.token for lease in await harness.store.renew([old.lease, new.lease], lease_seconds=15)] == [
            new.lease.token
        ]
        assert (await harness.store.read(again.id)).last_seq == 1

    async def test_it_waits_anew_and_no_longer_than_its_policy_says(self, harness: StoreHarness) -> None:
        old = await _claimed(harness, queue_timeout_seconds=20)
        again = await _put_back(harness, old)
        await harness.advance(19)
        assert list(await harness.store.lapsed()) == []
        await harness.advance(1)
        assert list(await harness.store.lapsed()) == [again.id]
        with pytest.raises(ClaimRefused):
            await harness.store.claim(again.id, NODE, lease_seconds=15)

    async def test_without_a_time_to_wait_it_waits_on(self, harness: StoreHarness) -> None:
        again = await _put_back(harness, await _claimed(harness))
        await harness.advance(60)
        assert list(await harness.store.lapsed()) == []
        assert (await harness.store.claim(again.id, NODE, lease_seconds=15)).execution.attempt == 2

    async def test_a_cancelled_one_keeps_its_log(self, harness: StoreHarness) -> None:
        old = await _claimed(harness)
        await harness.store.append(old.lease, [printed(harness.clock, b"a"), printed(harness.clock, b"b")])
        final = cancelled(await _put_back(harness, old), harness.clock)
        await harness.store.finish_unclaimed(final, [exited(harness.clock)])
        page = await harness.store.read(final.id)
        assert [event.seq for event in page.events] == [1, 2, 3, 4]
        assert page.events[-1].kind is EventKind.EXIT
        assert page.execution == final
        with pytest.raises(ClaimRefused):
            await harness.store.claim(final.id, NODE, lease_seconds=15)

    async def test_who_waits_for_the_end_waits_through_every_attempt(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        over = anyio.Event()

        async def wait() -> None:
            await harness.store.wait(claim.lease.execution_id, after=0, until_terminal=True)
            over.set()

        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                again = await _put_back(harness, claim)
                await harness.store.wait(again.id, after=0)
                claim = await harness.store.claim(again.id, OTHER_NODE, lease_seconds=15)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                assert not over.is_set()
                await harness.store.append(claim.lease, [exited(harness.clock)], ended(claim.execution, harness.clock))
                await over.wait()

    async def test_a_state_that_was_not_put_back_is_no_way_back(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock, retry_safe=True))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        with pytest.raises(IllegalTransition):
            await harness.store.append(claim.lease, [retried(harness.clock)], execution)
        assert await harness.store.load(execution.id) == claim.execution

    async def test_the_last_attempt_is_not_put_back(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        for _ in range(MAX_ATTEMPTS - 1):
            again = await _put_back(harness, claim)
            claim = await harness.store.claim(again.id, NODE, lease_seconds=15)
        assert claim.execution.attempt == MAX_ATTEMPTS
        with pytest.raises(IllegalTransition):
            requeued(claim.execution, harness.clock)

    async def test_one_that_waits_again_expires_with_everything(self, harness: StoreHarness) -> None:
        again = await _put_back(harness, await _claimed(harness, queue_timeout_seconds=20))
        await harness.advance(harness.ttl_seconds)
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(again.id)
        for execution_id in await harness.store.lapsed():
            with pytest.raises(ExecutionNotFound):
                await harness.store.seize(execution_id, NODE, lease_seconds=15)
        assert list(await harness.store.lapsed()) == []


async def _claimed(harness: StoreHarness, queue_timeout_seconds: float | None = None) -> Claim:
    execution = pending(harness.clock, queue_timeout_seconds=queue_timeout_seconds, retry_safe=True)
    await harness.store.create(execution)
    return await harness.store.claim(execution.id, NODE, lease_seconds=15)


async def _put_back(harness: StoreHarness, claim: Claim) -> Execution:
    await harness.advance(15)
    taken = await harness.store.seize(claim.lease.execution_id, OTHER_NODE, lease_seconds=15)
    again = requeued(taken.execution, harness.clock)
    await harness.store.append(taken.lease, [retried(harness.clock)], again)
    return again
