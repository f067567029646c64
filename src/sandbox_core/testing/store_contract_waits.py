"""StateStore contract: waiting for what comes next, pushed."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from sandbox_core.domain.errors import ExecutionNotFound
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.store import Claim
from sandbox_core.testing.samples import NODE, cancelled, ended, exited, pending, printed
from sandbox_core.testing.store_harness import StoreHarness

_BOUND_SECONDS = 30


@pytest.mark.anyio
class WaitContract:
    """A waiter wakes for what it waits for, once it is there, however the two race."""

    async def test_what_is_there_already_is_not_waited_for(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        await harness.store.append(claim.lease, [printed(harness.clock, b"a")])
        with anyio.fail_after(_BOUND_SECONDS):
            await harness.store.wait(claim.lease.execution_id, after=0)
        await harness.store.append(claim.lease, [exited(harness.clock)], ended(claim.execution, harness.clock))
        with anyio.fail_after(_BOUND_SECONDS):
            await harness.store.wait(claim.lease.execution_id, after=99)
            await harness.store.wait(claim.lease.execution_id, after=0, until_terminal=True)

    async def test_an_append_wakes_every_waiter(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(_wait, harness, claim.lease.execution_id, 0)
                await _settle()
                await harness.store.append(claim.lease, [printed(harness.clock, b"a")])

    async def test_no_wake_up_is_lost_between_looking_and_waiting(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        with anyio.fail_after(_BOUND_SECONDS):
            for number in range(50):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_wait, harness, claim.lease.execution_id, number)
                    for _ in range(number % 5):
                        await anyio.lowlevel.checkpoint()
                    await harness.store.append(claim.lease, [printed(harness.clock, b"a")])

    async def test_a_waiter_for_a_later_event_sleeps_on(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        woken = anyio.Event()
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_wait, harness, claim.lease.execution_id, 2, woken)
                for _ in range(2):
                    await _settle()
                    await harness.store.append(claim.lease, [printed(harness.clock, b"a")])
                await _settle()
                assert not woken.is_set()
                await harness.store.append(claim.lease, [printed(harness.clock, b"a")])

    async def test_only_the_end_wakes_who_waits_for_the_end(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        await harness.store.append(claim.lease, [printed(harness.clock, b"there already")])
        woken = anyio.Event()
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_wait_for_end, harness, claim.lease.execution_id, woken)
                tasks.start_soon(_wait, harness, claim.lease.execution_id, 9)
                await _settle()
                await harness.store.append(claim.lease, [printed(harness.clock, b"a")])
                await _settle()
                assert not woken.is_set()
                await harness.store.append(claim.lease, [exited(harness.clock)], ended(claim.execution, harness.clock))

    async def test_the_end_of_one_that_never_started_wakes_its_waiters(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_wait, harness, execution.id, 0)
                tasks.start_soon(_wait_for_end, harness, execution.id, anyio.Event())
                await _settle()
                await harness.store.finish_unclaimed(cancelled(execution, harness.clock), [])

    async def test_a_discarded_execution_is_not_found_by_its_waiters(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        told: list[str] = []

        async def wait() -> None:
            with pytest.raises(ExecutionNotFound):
                await harness.store.wait(execution.id, after=0)
            told.append("not found")

        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await _settle()
                await harness.store.discard(execution.id)
        assert told == ["not found"]

    async def test_a_waiter_that_gives_up_disturbs_no_other(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as staying, anyio.create_task_group() as leaving:
                staying.start_soon(_wait, harness, claim.lease.execution_id, 0)
                for _ in range(5):
                    leaving.start_soon(_wait, harness, claim.lease.execution_id, 0)
                await _settle()
                leaving.cancel_scope.cancel()
                await harness.store.append(claim.lease, [printed(harness.clock, b"a")])

    async def test_waiters_of_other_executions_sleep_on(self, harness: StoreHarness) -> None:
        one, other = await _claimed(harness), await _claimed(harness)
        woken = anyio.Event()
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_wait, harness, one.lease.execution_id, 0, woken)
                await _settle()
                await harness.store.append(other.lease, [printed(harness.clock, b"a")])
                await _settle()
                assert not woken.is_set()
                tasks.cancel_scope.cancel()


async def _claimed(harness: StoreHarness) -> Claim:
    execution = await harness.store.create(pending(harness.clock))
    return await harness.store.claim(execution.id, NODE, lease_seconds=15)


async def _wait(harness: StoreHarness, execution_id: ExecutionId, after: int, woken: anyio.Event | None = None) -> None:
    await harness.store.wait(execution_id, after=after)
    if woken is not None:
        woken.set()


async def _wait_for_end(harness: StoreHarness, execution_id: ExecutionId, woken: anyio.Event) -> None:
    await harness.store.wait(execution_id, after=0, until_terminal=True)
    woken.set()


async def _settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
