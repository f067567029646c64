"""What the keepers of several nodes make of executions whose owner is silent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.application.leases import LAPSED_AT_ONCE, LeaseKeeper
from sandbox_core.domain.errors import StoredDataCorrupt, StoreUnavailable
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.samples import pending, printed

LEASE_SECONDS = 9.0
WITHIN_SECONDS = 15.0
"""What is promised to callers, after the last renewal of a node that died."""

pytestmark = pytest.mark.anyio


class Trouble(MemoryStateStore):
    """A store that can be away, and that has data which cannot be read."""

    away = False
    poisoned: frozenset[ExecutionId] = frozenset()

    async def lapsed(self, *, limit: int = 100) -> Sequence[ExecutionId]:
        if self.away:
            raise StoreUnavailable("for the test")
        return await super().lapsed(limit=limit)

    async def seize(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        await anyio.lowlevel.checkpoint()
        if execution_id in self.poisoned:
            raise StoredDataCorrupt(f"execution {execution_id}", "poison")
        return await super().seize(execution_id, node, lease_seconds=lease_seconds)


@dataclass
class Cluster:
    """One store, and nodes that keep leases in it."""

    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.store = Trouble(self.clock)
        self.queue = LocalQueue(clock=self.clock)

    def keeper(self, name: str) -> LeaseKeeper:
        return LeaseKeeper(
            store=self.store,
            queue=self.queue,
            clock=self.clock,
            node=NodeId(name),
            runs={},
            lease_seconds=LEASE_SECONDS,
            retry_seconds=1,
        )

    async def owned_by_the_dead(self, count: int = 1) -> list[ExecutionId]:
        ids = []
        for _ in range(count):
            execution = await self.store.create(pending(self.clock))
            claim = await self.store.claim(execution.id, NodeId("dead"), lease_seconds=LEASE_SECONDS)
            await self.store.append(claim.lease, [printed(self.clock, b"so far")])
            ids.append(execution.id)
        return ids

    async def statuses(self, ids: Sequence[ExecutionId]) -> set[ExecutionStatus]:
        return {(await self.store.load(execution_id)).status for execution_id in ids}


@asynccontextmanager
async def cluster(*names: str) -> AsyncIterator[Cluster]:
    made = Cluster()
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(made.keeper(name).work)
        await made.clock.advance(LEASE_SECONDS)
        yield made
        tasks.cancel_scope.cancel()


async def test_of_many_nodes_that_sweep_one_ends_a_lost_execution() -> None:
    async with cluster("a", "b", "c") as nodes:
        (lost,) = await nodes.owned_by_the_dead()
        await nodes.clock.advance(LEASE_SECONDS - 1)
        assert await nodes.statuses([lost]) == {ExecutionStatus.RUNNING}
        await nodes.clock.advance(WITHIN_SECONDS - LEASE_SECONDS + 1)
        page = await nodes.store.read(lost)
        assert page.execution.outcome is not None
        assert page.execution.outcome.reason is TerminationReason.LOST
        assert page.execution.started_at is not None
        assert page.execution.ended_at is not None
        known = page.execution.ended_at - page.execution.started_at
        assert page.execution.outcome.usage.wall_seconds == known.total_seconds() > 0
        assert [event.kind for event in page.events] == [EventKind.STDOUT, EventKind.ERROR]


async def test_everything_that_a_big_node_ran_is_ended_at_once() -> None:
    async with cluster("a") as nodes:
        lost = await nodes.owned_by_the_dead(3 * LAPSED_AT_ONCE + 1)
        await nodes.clock.advance(WITHIN_SECONDS)
        with anyio.fail_after(30):
            while await nodes.statuses(lost) != {ExecutionStatus.FAILED}:
                await nodes.clock.settle()


async def test_one_that_cannot_be_read_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster("a") as nodes:
        first, second = await nodes.owned_by_the_dead(2)
        nodes.store.poisoned = frozenset({first})
        await nodes.clock.advance(3 * WITHIN_SECONDS)
        assert await nodes.statuses([second]) == {ExecutionStatus.FAILED}
        assert caplog.text.count("cannot be marked") == 1


async def test_owners_get_a_lease_to_renew_after_the_store_was_away(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster("a") as nodes:
        (silent,) = await nodes.owned_by_the_dead()
        nodes.store.away = True
        await nodes.clock.advance(30)
        nodes.store.away = False
        assert caplog.text.count("leases could not be kept") == 1
        await nodes.clock.advance(LEASE_SECONDS - 1)
        assert await nodes.statuses([silent]) == {ExecutionStatus.RUNNING}
        await nodes.clock.advance(WITHIN_SECONDS - LEASE_SECONDS)
        assert await nodes.statuses([silent]) == {ExecutionStatus.FAILED}


async def test_a_node_that_just_started_ends_nothing_for_a_lease() -> None:
    nodes = Cluster()
    (silent,) = await nodes.owned_by_the_dead()
    await nodes.clock.advance(10 * LEASE_SECONDS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(nodes.keeper("new").work)
        await nodes.clock.advance(LEASE_SECONDS - 1)
        assert await nodes.statuses([silent]) == {ExecutionStatus.RUNNING}
        await nodes.clock.advance(WITHIN_SECONDS - LEASE_SECONDS + 1)
        assert await nodes.statuses([silent]) == {ExecutionStatus.FAILED}
        tasks.cancel_scope.cancel()
