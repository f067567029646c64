"""StateStore contract: claims, leases and fencing tokens."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from sandbox_core.domain.errors import ClaimRefused, ExecutionNotFound, IllegalTransition, LeaseLost
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim
from sandbox_core.testing.samples import NODE, OTHER_NODE, cancelled, ended, exited, pending, printed
from sandbox_core.testing.store_harness import StoreHarness


@pytest.mark.anyio
class LeaseContract:
    """One owner at a time, and one that lost its lease writes nothing."""

    async def test_a_claim_makes_the_execution_run_on_the_node(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        assert claim.execution == execution.apply(execution.start(NODE, harness.clock.now()))
        assert await harness.store.load(execution.id) == claim.execution
        assert (claim.lease.execution_id, claim.lease.node) == (execution.id, NODE)
        assert claim.lease.expires_at == harness.clock.now() + timedelta(seconds=15)

    async def test_exactly_one_of_many_claims_succeeds(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        won: list[Claim] = []
        refused: list[NodeId] = []

        async def claim(node: NodeId) -> None:
            try:
                won.append(await harness.store.claim(execution.id, node, lease_seconds=15))
            except ClaimRefused:
                refused.append(node)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(claim, NodeId(f"node-{number}"))
        assert (len(won), len(refused)) == (1, 9)
        assert (await harness.store.load(execution.id)).node == won[0].lease.node

    async def test_what_is_not_pending_cannot_be_claimed(self, harness: StoreHarness) -> None:
        running = await _claimed(harness)
        stopped = await harness.store.create(pending(harness.clock))
        await harness.store.finish_unclaimed(cancelled(stopped, harness.clock), [])
        for execution in (running.execution, stopped):
            with pytest.raises(ClaimRefused):
                await harness.store.claim(execution.id, OTHER_NODE, lease_seconds=15)

    async def test_a_lease_that_holds_cannot_be_seized(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        await harness.advance(14)
        with pytest.raises(ClaimRefused):
            await harness.store.seize(claim.lease.execution_id, OTHER_NODE, lease_seconds=15)
        assert await harness.store.append(claim.lease, [printed(harness.clock, b"a")]) == 1

    async def test_a_seized_lease_writes_no_more(self, harness: StoreHarness) -> None:
        old = await _claimed(harness)
        await harness.store.append(old.lease, [printed(harness.clock, b"before")])
        await harness.advance(15)
        new = await harness.store.seize(old.lease.execution_id, OTHER_NODE, lease_seconds=15)
        assert new.lease.token > old.lease.token
        assert new.execution == old.execution
        with pytest.raises(LeaseLost):
            await harness.store.append(old.lease, [printed(harness.clock, b"late")])
        assert list(await harness.store.renew([old.lease], lease_seconds=15)) == []
        final = ended(new.execution, harness.clock)
        assert await harness.store.append(new.lease, [exited(harness.clock)], final) == 2
        page = await harness.store.read(final.id)
        assert [event.data for event in page.events[:1]] == [b"before"]

    async def test_exactly_one_of_many_seizures_succeeds(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        await harness.advance(15)
        won: list[Claim] = []

        async def seize(node: NodeId) -> None:
            try:
                won.append(await harness.store.seize(claim.lease.execution_id, node, lease_seconds=15))
            except ClaimRefused:
                return

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(seize, NodeId(f"node-{number}"))
        assert len(won) == 1

    async def test_what_does_not_run_cannot_be_seized(self, harness: StoreHarness) -> None:
        waiting = await harness.store.create(pending(harness.clock))
        finished = await _claimed(harness)
        await harness.store.append(finished.lease, [exited(harness.clock)], ended(finished.execution, harness.clock))
        await harness.advance(60)
        for execution_id in (waiting.id, finished.lease.execution_id):
            with pytest.raises(ClaimRefused):
                await harness.store.seize(execution_id, OTHER_NODE, lease_seconds=15)

    async def test_a_lapsed_lease_that_nobody_seized_still_writes_and_renews(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        await harness.advance(100)
        assert await harness.store.append(claim.lease, [printed(harness.clock, b"a")]) == 1
        assert [lease.token for lease in await harness.store.renew([claim.lease], lease_seconds=15)] == [
            claim.lease.token
        ]
        with pytest.raises(ClaimRefused):
            await harness.store.seize(claim.lease.execution_id, OTHER_NODE, lease_seconds=15)

    async def test_renewing_extends_what_still_holds(self, harness: StoreHarness) -> None:
        kept, finished = await _claimed(harness), await _claimed(harness)
        await harness.store.append(finished.lease, [exited(harness.clock)], ended(finished.execution, harness.clock))
        for _ in range(3):
            await harness.advance(10)
            renewed = await harness.store.renew([finished.lease, kept.lease], lease_seconds=15)
            assert [(lease.execution_id, lease.node, lease.token, lease.expires_at) for lease in renewed] == [
                (kept.lease.execution_id, NODE, kept.lease.token, harness.clock.now() + timedelta(seconds=15))
            ]
        assert list(await harness.store.lapsed()) == []
        assert list(await harness.store.renew([], lease_seconds=15)) == []

    async def test_lapsed_names_running_executions_oldest_first(self, harness: StoreHarness) -> None:
        claims = [await _claimed(harness, lease_seconds=seconds) for seconds in (30, 10, 20, 40, 5)]
        late, early, middle, last, gone = (claim.lease.execution_id for claim in claims)
        await harness.store.append(claims[4].lease, [exited(harness.clock)], ended(claims[4].execution, harness.clock))
        assert list(await harness.store.lapsed()) == []
        await harness.advance(10)
        assert list(await harness.store.lapsed()) == [early]
        await harness.advance(20)
        assert list(await harness.store.lapsed()) == [early, middle, late]
        assert list(await harness.store.lapsed(limit=2)) == [early, middle]
        await harness.store.seize(early, OTHER_NODE, lease_seconds=100)
        await harness.store.renew([claims[2].lease], lease_seconds=100)
        assert list(await harness.store.lapsed()) == [late]
        await harness.advance(10)
        assert list(await harness.store.lapsed()) == [late, last]
        assert gone not in await harness.store.lapsed()

    async def test_a_pending_execution_is_finished_without_a_claim(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        final = cancelled(execution, harness.clock)
        await harness.store.finish_unclaimed(final, [exited(harness.clock)])
        page = await harness.store.read(execution.id)
        assert (page.execution, page.last_seq) == (final, 1)

    async def test_only_a_pending_execution_is_finished_without_a_claim(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        with pytest.raises(ClaimRefused):
            await harness.store.finish_unclaimed(ended(claim.execution, harness.clock), [exited(harness.clock)])
        page = await harness.store.read(claim.lease.execution_id)
        assert (page.execution, page.last_seq) == (claim.execution, 0)
        with pytest.raises(ExecutionNotFound):
            await harness.store.finish_unclaimed(cancelled(pending(harness.clock), harness.clock), [])

    async def test_finishing_needs_a_terminal_state(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        with pytest.raises(IllegalTransition):
            await harness.store.finish_unclaimed(execution, [])
        assert (await harness.store.load(execution.id)).status is ExecutionStatus.PENDING

    async def test_a_claim_and_a_cancel_never_both_win(self, harness: StoreHarness) -> None:
        for _ in range(10):
            execution = await harness.store.create(pending(harness.clock))
            won: list[str] = []

            async def claim(of: Execution = execution, won: list[str] = won) -> None:
                try:
                    await harness.store.claim(of.id, NODE, lease_seconds=15)
                    won.append("claim")
                except ClaimRefused:
                    return

            async def cancel(of: Execution = execution, won: list[str] = won) -> None:
                try:
                    await harness.store.finish_unclaimed(cancelled(of, harness.clock), [])
                    won.append("cancel")
                except ClaimRefused:
                    return

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                tasks.start_soon(cancel)
            assert len(won) == 1


async def _claimed(harness: StoreHarness, lease_seconds: float = 15) -> Claim:
    execution = await harness.store.create(pending(harness.clock))
    return await harness.store.claim(execution.id, NODE, lease_seconds=lease_seconds)
