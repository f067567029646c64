"""SharedQueue keeps the ExecutionQueue contract, and what waits in a replica that is gone is started by another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.queues.shared import SharedQueue
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ClaimRefused
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.ports.queue import ExecutionQueue, QueueItem
from sandbox_core.ports.store import StateStore
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.queue_contract import ExecutionQueueContract
from sandbox_core.testing.queue_harness import BOUND_SECONDS, MakeQueue, everyone
from sandbox_core.testing.samples import cancelled, exited, pending
from tests.redis_server import RedisServer

LEASE_SECONDS = 0.3


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def satisfies_the_port(queue: SharedQueue) -> ExecutionQueue:
    """Checked by mypy."""
    return queue


@dataclass
class Replicas:
    """Stores and queues of several replicas on one Redis."""

    server: RedisServer
    stack: AsyncExitStack

    async def store(self) -> tuple[RedisConnection, RedisStateStore]:
        options = RedisOptions(SecretStr(self.server.url), prefix="test", timeout_seconds=20)
        connection = await self.stack.enter_async_context(RedisConnection(options))
        return connection, await self.stack.enter_async_context(RedisStateStore(connection, SystemClock()))

    async def queue(
        self,
        *,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        offers: frozenset[str] | None = None,
        known: StateStore | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> tuple[SharedQueue, RedisStateStore]:
        connection, store = await self.store()
        queue = SharedQueue(
            local=LocalQueue(max_depth=max_depth, max_per_principal=max_per_principal),
            store=known or store,
            connection=connection,
            clock=SystemClock(),
            lease_seconds=lease_seconds,
            offers=offers,
        )
        return await self.stack.enter_async_context(queue), store

    def abandon(self, execution_id: ExecutionId) -> None:
        """Let the time of whoever vouched for it be over, as when its replica died."""
        assert self.server.ask("ZADD", "test:waiting", "XX", "CH", 1, execution_id) == 1


@pytest.fixture
async def replicas(anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(redis_server, stack)


def item_of(execution: Execution) -> QueueItem:
    return QueueItem(execution.id, execution.principal, execution.session_id, execution.created_at, execution.labels)


class KnowsAll(MemoryStateStore):
    """Holds every execution asked for, pending: the contract's items are of none, and a round drops what never was."""

    async def load(self, execution_id: ExecutionId) -> Execution:
        return replace(pending(SystemClock()), id=execution_id)


class TestSharedQueue(ExecutionQueueContract):
    @pytest.fixture
    def make_queue(self, replicas: Replicas) -> MakeQueue:
        async def make(*, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
            known = KnowsAll(SystemClock())
            queue, _ = await replicas.queue(max_depth=max_depth, max_per_principal=max_per_principal, known=known)
            return queue

        return make


@pytest.mark.anyio
class TestBetweenReplicas:
    async def test_what_waited_in_one_that_died_is_started_by_another(self, replicas: Replicas) -> None:
        _, dead = await replicas.store()
        execution = await dead.create(pending(FakeClock(SystemClock().now())))
        replicas.abandon(execution.id)
        queue, store = await replicas.queue()
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
        assert delivery.item == item_of(execution)
        await store.claim(execution.id, NodeId("living"), lease_seconds=5)
        assert replicas.server.ask("ZCARD", "test:waiting") == 0

    async def test_what_waits_in_one_that_lives_stays_there(self, replicas: Replicas) -> None:
        # A busy machine must not be taken for a dead replica.
        first, store = await replicas.queue(lease_seconds=3)
        execution = await store.create(pending(FakeClock(SystemClock().now())))
        await first.put(item_of(execution))
        replicas.abandon(execution.id)
        with anyio.fail_after(BOUND_SECONDS):
            while replicas.server.ask("ZSCORE", "test:waiting", execution.id) == b"1":
                await anyio.lowlevel.checkpoint()
        second, _ = await replicas.queue()
        with anyio.move_on_after(8 * LEASE_SECONDS):
            await second.take(everyone)
            pytest.fail("taken from one that lives")
        assert await first.depth() == 1

    async def test_what_waits_in_one_that_ends_is_taken_over_at_once(self, replicas: Replicas) -> None:
        ending, store = await replicas.queue()
        executions = [await store.create(pending(FakeClock(SystemClock().now()))) for _ in range(3)]
        for execution in executions:
            await ending.put(item_of(execution))
        assert await ending.close() == ()
        other, _ = await replicas.queue()
        with anyio.fail_after(BOUND_SECONDS):
            taken = {(await other.take(everyone)).item.execution_id for _ in executions}
        assert taken == {execution.id for execution in executions}

    async def test_a_full_replica_leaves_it_to_another(self, replicas: Replicas) -> None:
        _, store = await replicas.store()
        executions = [await store.create(pending(FakeClock(SystemClock().now()))) for _ in range(3)]
        for execution in executions:
            replicas.abandon(execution.id)
        queues = [(await replicas.queue(max_depth=1))[0] for _ in range(3)]
        with anyio.fail_after(BOUND_SECONDS):
            taken = {(await queue.take(everyone)).item.execution_id for queue in queues}
        assert taken == {execution.id for execution in executions}

    async def test_two_that_hold_one_execution_claim_it_once(self, replicas: Replicas) -> None:
        pairs = [await replicas.queue(), await replicas.queue()]
        store = pairs[0][1]
        for _ in range(20):
            execution = await store.create(pending(FakeClock(SystemClock().now())))
            claimed: list[NodeId] = []

            async def claim(
                number: int, queue: SharedQueue, store: RedisStateStore, won: list[NodeId] = claimed
            ) -> None:
                delivery = await queue.take(everyone)
                node = NodeId(f"node-{number}")
                try:
                    await store.claim(delivery.item.execution_id, node, lease_seconds=5)
                except ClaimRefused:
                    pass
                else:
                    won.append(node)
                await queue.done(delivery)

            with anyio.fail_after(BOUND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    for number, (queue, each) in enumerate(pairs):
                        await queue.put(item_of(execution))
                        tasks.start_soon(claim, number, queue, each)
            assert len(claimed) == 1
            assert (await store.load(execution.id)).node == claimed[0]

    async def test_what_was_cancelled_elsewhere_takes_no_room_here(self, replicas: Replicas) -> None:
        clock = FakeClock(SystemClock().now())
        queue, store = await replicas.queue(max_depth=1)
        execution = await store.create(pending(clock))
        await queue.put(item_of(execution))
        _, elsewhere = await replicas.store()
        await elsewhere.finish_unclaimed(cancelled(execution, clock), [exited(clock)])
        with anyio.fail_after(BOUND_SECONDS):
            while await queue.depth():  # noqa: ASYNC110  # a round of the queue tells nobody
                await anyio.sleep(0.01)

    @pytest.mark.parametrize("poison", ["*", "execution:x", "0" * 36])
    async def test_a_poisoned_entry_is_dropped(self, replicas: Replicas, poison: str) -> None:
        replicas.server.ask("ZADD", "test:waiting", 1, poison)
        _, dead = await replicas.store()
        execution = await dead.create(pending(FakeClock(SystemClock().now())))
        replicas.abandon(execution.id)
        queue, _ = await replicas.queue()
        with anyio.fail_after(BOUND_SECONDS):
            assert (await queue.take(everyone)).item.execution_id == execution.id
            while replicas.server.ask("ZSCORE", "test:waiting", poison) is not None:  # noqa: ASYNC110  # Redis tells nobody
                await anyio.sleep(0.01)

    @pytest.mark.parametrize("way", ["put", "abandoned"])
    async def test_what_needs_labels_that_are_not_here_goes_to_a_replica_that_has_them(
        self, replicas: Replicas, way: str
    ) -> None:
        plain, store = await replicas.queue(offers=frozenset())
        with_gpu, _ = await replicas.queue(offers=frozenset({"gpu"}))
        execution = await store.create(replace(pending(FakeClock(SystemClock().now())), labels=("gpu",)))
        if way == "put":
            await plain.put(item_of(execution))
        else:
            replicas.abandon(execution.id)
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await with_gpu.take(everyone, frozenset({"gpu"}))
        assert delivery.item == item_of(execution)
        assert await plain.depth() == 0
