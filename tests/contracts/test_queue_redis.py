"""RedisQueue keeps the ExecutionQueue contract, and what it adds to it: several processes, and takers that die."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_core.domain.errors import ServerDraining, StoreUnavailable
from sandbox_core.ports.queue import Delivery, ExecutionQueue, QueueItem, QueueStats
from sandbox_core.testing.queue_contract import ExecutionQueueContract
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, MakeQueue, everyone, item, take_all
from tests.redis_server import RedisServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def satisfies_the_port(queue: RedisQueue) -> ExecutionQueue:
    """Checked by mypy."""
    return queue


class Join(Protocol):
    """Opens the queue as one more process would."""

    async def __call__(
        self,
        *,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        visibility_seconds: float = 9.0,
        stack: AsyncExitStack | None = None,
    ) -> RedisQueue: ...


async def opened(server: RedisServer, stack: AsyncExitStack, prefix: str, **options: object) -> RedisQueue:
    url = SecretStr(server.url)
    connection = await stack.enter_async_context(RedisConnection(RedisOptions(url, prefix=prefix, timeout_seconds=1)))
    return await stack.enter_async_context(RedisQueue(connection=connection, **options))  # type: ignore[arg-type]  # of the test


class TestRedisQueue(ExecutionQueueContract):
    @pytest.fixture
    async def make_queue(self, anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[MakeQueue]:
        async with AsyncExitStack() as stack:
            made = 0

            async def make(*, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
                nonlocal made
                made += 1
                options = {"max_depth": max_depth, "max_per_principal": max_per_principal}
                return await opened(redis_server, stack, f"queue{made}", **options)

            yield make


@pytest.fixture
async def join(anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[Join]:
    async with AsyncExitStack() as outer:

        async def open_one(
            *,
            max_depth: int = 100,
            max_per_principal: int | None = None,
            visibility_seconds: float = 9.0,
            stack: AsyncExitStack | None = None,
        ) -> RedisQueue:
            options = {"max_depth": max_depth, "max_per_principal": max_per_principal}
            where = outer if stack is None else stack
            return await opened(redis_server, where, "one", visibility_seconds=visibility_seconds, **options)

        yield open_one


async def take(queue: RedisQueue) -> Delivery:
    with anyio.fail_after(BOUND_SECONDS):
        return await queue.take(everyone)


async def blocked(server: RedisServer) -> None:
    """Return when a taker waits in Redis."""
    with anyio.fail_after(BOUND_SECONDS):
        while b"cmd=blpop" not in server.ask("CLIENT", "LIST"):
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
class TestSeveralProcesses:
    async def test_what_one_puts_a_waiting_other_takes(self, join: Join) -> None:
        front, back = await join(), await join()
        for _ in range(3):
            taken: list[QueueItem] = []

            async def wait(taken: list[QueueItem] = taken) -> None:
                taken.append((await take(back)).item)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await front.put(put := item("p:|*", "s ="))
            assert taken == [put]

    async def test_many_takers_in_many_processes_get_each_item_once(self, join: Join) -> None:
        front, backs = await join(), [await join() for _ in range(3)]
        puts = [item(f"p{number % 4}", f"s{number % 3}") for number in range(60)]
        taken: list[QueueItem] = []

        async def work(queue: RedisQueue, tasks: anyio.abc.TaskGroup) -> None:
            while True:
                delivery = await queue.take(Gate())
                taken.append(delivery.item)
                await queue.done(delivery)
                if len(taken) == len(puts):
                    tasks.cancel_scope.cancel()

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for queue in backs * 2:
                    tasks.start_soon(work, queue, tasks)
                for put in puts:
                    await front.put(put)
        assert Counter(one.execution_id for one in taken) == Counter(put.execution_id for put in puts)

    async def test_the_bound_is_exact_over_processes(self, join: Join) -> None:
        queues = [await join(max_depth=20, max_per_principal=10) for _ in range(3)]
        refused = Counter[str]()

        async def put(queue: RedisQueue, principal: str) -> None:
            try:
                await queue.put(item(principal))
            except Exception as error:  # noqa: BLE001  # counted by kind
                refused[type(error).__name__] += 1

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(put, queues[number % 3], "abc"[number // 20])
        assert await queues[0].depth() == 20
        assert refused == {"ServerFull": 40}

    async def test_closing_one_leaves_what_waits_to_the_others(self, join: Join) -> None:
        one, other = await join(), await join()
        await one.put(put := item())
        assert await one.close() == []
        with pytest.raises(ServerDraining):
            await one.put(item())
        assert (await take(other)).item == put

    async def test_a_refusal_here_is_none_there(self, join: Join) -> None:
        one, other = await join(), await join()
        gate = Gate("a")
        await one.put(put := item("a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.take, gate)
            with anyio.fail_after(BOUND_SECONDS):
                while not gate.asked:
                    await anyio.lowlevel.checkpoint()
            assert (await take(other)).item == put
            tasks.cancel_scope.cancel()

    async def test_a_token_for_a_taker_that_has_left_wakes_another(self, join: Join) -> None:
        busy, idle = await join(), await join()
        with anyio.move_on_after(0.1):
            await busy.take(everyone)  # its listener goes on popping for a while
        taken: list[QueueItem] = []

        async def wait() -> None:
            taken.append((await idle.take(everyone)).item)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await busy.put(put := item())
        assert taken == [put]


@pytest.mark.anyio
class TestTakersThatDie:
    async def test_what_a_dead_taker_held_is_handed_out_again_at_the_head(self, join: Join) -> None:
        other = await join(visibility_seconds=0.6)
        async with AsyncExitStack() as life:
            dying = await join(visibility_seconds=0.6, stack=life)
            for put in (puts := [item(), item()]):
                await dying.put(put)
            assert (await take(dying)).item == puts[0]
        assert (await take(other)).item == puts[1]
        assert (await take(other)).item == puts[0]

    async def test_what_a_living_taker_holds_is_not(self, join: Join, redis_server: RedisServer) -> None:
        living, other = await join(visibility_seconds=0.6), await join(visibility_seconds=0.6)
        await living.put(item())
        held = await take(living)
        with anyio.move_on_after(1.5):
            await other.take(everyone)
            raise AssertionError("it was handed out twice")
        await living.done(held)
        assert redis_server.ask("EXISTS", "one:queue:held", "one:queue:held:items") == 0

    async def test_a_question_of_a_dead_taker_holds_its_lane_up_for_a_while_only(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join(visibility_seconds=0.5)
        await queue.put(put := item())
        lane = redis_server.ask("HGET", "one:queue:items", put.execution_id).split()[0]
        now = int(redis_server.ask("TIME")[0]) * 1000
        redis_server.ask("HSET", "one:queue:asked", lane, f"gone {now + 1500}")
        assert (await take(queue)).item == put

    async def test_done_after_it_came_back_forgets_it(self, join: Join, redis_server: RedisServer) -> None:
        queue = await join(visibility_seconds=30)
        await queue.put(item())
        slow = await take(queue)
        redis_server.ask("ZADD", "one:queue:held", 1, slow.receipt)
        again = await take(queue)
        assert again.item == slow.item
        await queue.give_back(again)
        await queue.done(slow)
        assert await queue.depth() == 0


@pytest.mark.anyio
class TestBeyondTheContract:
    async def test_putting_what_waits_already_changes_nothing(self, join: Join) -> None:
        queue, put = await join(max_depth=1), item()
        await queue.put(put)
        await queue.put(put)
        assert await queue.depth() == 1

    async def test_it_tells_since_when_the_oldest_waits_whatever_was_lost_before_it(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join()
        puts = [item(f"p{number}", '"queued_at":"1"') for number in range(3)]
        for put in reversed(puts):
            await queue.put(put)
        assert await queue.stats() == QueueStats(3, puts[0].queued_at)
        redis_server.ask("HDEL", "one:queue:items", puts[0].execution_id)
        assert await queue.stats() == QueueStats(2, puts[1].queued_at)
        assert redis_server.ask("ZCARD", "one:queue:since") == 2

    async def test_every_key_expires_and_an_empty_queue_leaves_only_its_clockwork(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join()
        for number in range(20):
            await queue.put(item(f"p{number % 5}", f"s{number}"))
        held = await take(queue)
        for key in redis_server.ask("KEYS", "*"):
            assert redis_server.ask("PTTL", key) > 0, key
        await queue.give_back(held)
        await take_all(queue, 20)
        assert set(redis_server.ask("KEYS", "*")) == {b"one:queue:state", b"one:queue:turns"}

    async def test_what_cannot_be_read_is_dropped_and_holds_nothing_up(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join()
        await queue.put(bad := item())
        await queue.put(good := item())
        lane = redis_server.ask("HGET", "one:queue:items", bad.execution_id).split()[0]
        redis_server.ask("HSET", "one:queue:items", bad.execution_id, lane + b" {}")
        assert (await take(queue)).item == good
        assert await queue.depth() == 0

    async def test_an_item_that_was_evicted_holds_nothing_up(self, join: Join, redis_server: RedisServer) -> None:
        queue = await join()
        await queue.put(bad := item())
        await queue.put(good := item())
        redis_server.ask("HDEL", "one:queue:items", bad.execution_id)
        assert (await take(queue)).item == good

    async def test_an_idle_taker_costs_less_than_three_commands_a_second(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.take, everyone)
            await blocked(redis_server)
            before = redis_server.commands()
            seconds = 6.0
            await anyio.sleep(seconds)
            spent = redis_server.commands() - before
            tasks.cancel_scope.cancel()
        spent.pop("info", None)
        spent.pop("client|list", None)
        assert spent.total() < 3 * seconds, spent

    async def test_what_is_done_while_redis_is_away_is_no_error_and_comes_back(
        self, own_redis: RedisServer, anyio_backend: str
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await opened(own_redis, stack, "one", visibility_seconds=1)
            await queue.put(put := item())
            held = await take(queue)
            own_redis.kill()
            await queue.done(held)
            own_redis.start()
            assert (await take(queue)).item == put

    async def test_a_taker_learns_that_redis_is_away_and_takes_when_it_is_back(
        self, own_redis: RedisServer, anyio_backend: str
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await opened(own_redis, stack, "one")
            await queue.put(put := item())
            held = await take(queue)
            async with anyio.create_task_group() as tasks:
                learnt = anyio.Event()

                async def wait() -> None:
                    with pytest.raises(StoreUnavailable):
                        await queue.take(everyone)
                    learnt.set()

                tasks.start_soon(wait)
                await blocked(own_redis)
                with anyio.fail_after(BOUND_SECONDS):
                    own_redis.kill()
                    await learnt.wait()
            own_redis.start()
            await queue.give_back(held)
            assert (await take(queue)).item == put
