"""RabbitQueue keeps the ExecutionQueue contract, and what it adds to it: several processes, and shared buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import aio_pika
import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sandbox_adapters.queues.rabbitmq import ASIDE, RabbitQueue
from sandbox_adapters.queues.rabbitmq_index import SPARE_DEAD
from sandbox_core.domain.errors import ServerDraining, ServerFull
from sandbox_core.domain.ids import Principal
from sandbox_core.ports.queue import ExecutionQueue, QueueItem
from sandbox_core.testing.queue_contract import ExecutionQueueContract
from sandbox_core.testing.queue_harness import Gate, MakeQueue, everyone, item, take_all
from tests.contracts.rabbitmq_harness import BOUND_SECONDS, BUCKETS, Join, joining, opened, take
from tests.rabbitmq_server import RabbitServer
from tests.redis_server import RedisServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def satisfies_the_port(queue: RabbitQueue) -> ExecutionQueue:
    """Checked by mypy."""
    return queue


class TestRabbitQueue(ExecutionQueueContract):
    @pytest.fixture
    async def make_queue(
        self, anyio_backend: str, rabbitmq_server: RabbitServer, redis_server: RedisServer
    ) -> AsyncIterator[MakeQueue]:
        async with AsyncExitStack() as stack:

            async def make(*, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
                options = {"max_depth": max_depth, "max_per_principal": max_per_principal}
                return await opened(rabbitmq_server, redis_server, stack, uuid4().hex[:8], **options)

            yield make


@pytest.fixture
async def join(anyio_backend: str, rabbitmq_server: RabbitServer, redis_server: RedisServer) -> AsyncIterator[Join]:
    async with AsyncExitStack() as outer:
        yield joining(rabbitmq_server, redis_server, outer)


async def lying(server: RabbitServer, prefix: str) -> int:
    """Return how many messages are in all buckets, and nobody has."""
    connection = await aio_pika.connect(server.url)
    async with connection:
        channel = await connection.channel()
        total = 0
        for bucket in range(BUCKETS):
            queue = await channel.declare_queue(f"sandbox.{prefix}.{bucket}", passive=True)
            total += queue.declaration_result.message_count or 0
        return total


@pytest.mark.anyio
class TestSeveralProcesses:
    async def test_what_one_puts_a_waiting_other_takes(self, join: Join) -> None:
        front, back = await join(), await join()
        for labels in ((), ("gpu",)):
            taken: list[QueueItem] = []

            async def wait(taken: list[QueueItem] = taken) -> None:
                taken.append((await take(back, "gpu")).item)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await front.put(put := item("p:|*", "s =", *labels))
            assert taken == [put]

    async def test_puts_of_several_at_once_never_exceed_the_bounds(self, join: Join) -> None:
        fronts = [await join(max_depth=20, max_per_principal=12) for _ in range(3)]
        refused: list[ServerFull] = []

        async def put(front: RabbitQueue, principal: str) -> None:
            try:
                await front.put(item(principal))
            except ServerFull as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for number in range(90):
                tasks.start_soon(put, fronts[number % 3], "greedy" if number % 9 else "modest")
        assert await fronts[0].depth() == 20
        assert len(refused) == 70
        served = Counter(put.principal for put in await take_all(fronts[1], 20))
        assert served[Principal("greedy")] <= 12

    async def test_several_share_the_work_and_nothing_is_taken_twice(self, join: Join) -> None:
        front, backs = await join(), [await join() for _ in range(3)]
        puts = [item(f"p{number % 3}", f"s{number % 4}") for number in range(60)]
        taken: list[str] = []

        async def work(back: RabbitQueue, tasks: anyio.abc.TaskGroup) -> None:
            while True:
                delivery = await back.take(everyone)
                taken.append(delivery.item.execution_id)
                await back.done(delivery)
                if len(taken) == len(puts):
                    tasks.cancel_scope.cancel()

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for back in backs:
                    tasks.start_soon(work, back, tasks)
                for put in puts:
                    await front.put(put)
        assert sorted(taken) == sorted(put.execution_id for put in puts)
        assert await front.depth() == 0

    async def test_closing_leaves_what_waits_to_others(self, join: Join) -> None:
        closing, other = await join(), await join()
        await closing.put(put := item())
        assert await closing.close() == []
        with pytest.raises(ServerDraining):
            await closing.put(item())
        assert (await take(other)).item == put


@pytest.mark.anyio
class TestSharedBuckets:
    async def test_more_lanes_than_buckets_lose_nothing_and_keep_their_order(self, join: Join) -> None:
        queue = await join(max_depth=200)
        puts = [item(f"p{number % 7}", f"s{number % 5}", *["gpu"][: number % 2]) for number in range(140)]
        for put in puts:
            await queue.put(put)
        served = await take_all(queue, 140, "gpu")
        for lane in {(put.principal, put.session_id, put.labels) for put in puts}:
            of_lane = [put for put in puts if (put.principal, put.session_id, put.labels) == lane]
            assert [put for put in served if (put.principal, put.session_id, put.labels) == lane] == of_lane

    async def test_what_is_refused_holds_up_no_other_lane_of_its_bucket(self, join: Join) -> None:
        queue = await join(max_depth=200)
        for number in range(BUCKETS):
            await queue.put(item("a", f"full{number}"))
        puts = [item("a", f"free{number}") for number in range(BUCKETS)]
        for put in puts:
            await queue.put(put)
        gate = Gate(*(f"full{number}" for number in range(BUCKETS)))
        taken: list[QueueItem] = []
        with anyio.fail_after(BOUND_SECONDS):
            for _ in puts:
                delivery = await queue.take(gate)
                taken.append(delivery.item)
                await queue.done(delivery)
        assert sorted(put.execution_id for put in taken) == sorted(put.execution_id for put in puts)
        assert BUCKETS / 2 < ASIDE
        assert await queue.depth() == BUCKETS

    async def test_a_principal_that_comes_late_gets_a_bucket_of_its_own(self, join: Join) -> None:
        queue = await join(max_depth=500)
        for number in range(200):
            await queue.put(item("greedy", f"s{number}"))
        for number in range(BUCKETS // 2):
            await queue.put(item(f"modest{number}"))
        served = await take_all(queue, BUCKETS // 2 + 1)
        assert len({put.principal for put in served}) == BUCKETS // 2 + 1


@pytest.mark.anyio
class TestTheIndex:
    async def test_putting_what_waits_already_changes_nothing(self, join: Join, rabbitmq_server: RabbitServer) -> None:
        queue, put = await join(max_depth=1), item()
        await queue.put(put)
        await queue.put(put)
        assert await queue.depth() == 1
        assert await lying(rabbitmq_server, join.prefix) == 1

    async def test_every_key_expires_and_an_empty_queue_leaves_only_its_clockwork(
        self, join: Join, redis_server: RedisServer, rabbitmq_server: RabbitServer
    ) -> None:
        queue = await join()
        for number in range(20):
            await queue.put(put := item(f"p{number % 5}", f"s{number}"))
        held = await take(queue)
        assert await queue.remove(put.execution_id)
        for key in redis_server.ask("KEYS", "*"):
            assert redis_server.ask("PTTL", key) > 0, key
        await queue.give_back(held)
        await take_all(queue, 19)
        left = {key.decode().rpartition(":")[2] for key in redis_server.ask("KEYS", f"{join.prefix}:*")}
        assert left - {"dead"} == {"state"}
        assert await lying(rabbitmq_server, join.prefix) <= 1

    async def test_messages_of_removed_items_do_not_pile_up(self, join: Join, rabbitmq_server: RabbitServer) -> None:
        queue = await join()
        puts = [item() for _ in range(3)]
        for put in puts:
            await queue.put(put)
        for _ in range(3 * SPARE_DEAD):
            await queue.put(unwanted := item())
            assert await queue.remove(unwanted.execution_id)
        assert await lying(rabbitmq_server, join.prefix) <= 3 + 2 * SPARE_DEAD
        assert await take_all(queue, 3) == puts

    async def test_what_rabbitmq_has_lost_is_forgotten_so_that_it_is_adopted_again(
        self, join: Join, redis_server: RedisServer, rabbitmq_server: RabbitServer
    ) -> None:
        queue = await join()
        await queue.put(put := item())
        (bucket,) = redis_server.ask("HKEYS", f"{join.prefix}:queue:rabbitmq:buckets")
        connection = await aio_pika.connect(rabbitmq_server.url)
        async with connection:
            lost = await (await connection.channel()).get_queue(f"sandbox.{join.prefix}.{bucket.decode()}")
            await lost.purge()
        raw = put.execution_id.encode()
        assert await queue.waiting([raw, b"other"]) == {raw}
        redis_server.ask("HSET", f"{join.prefix}:queue:rabbitmq:missed", bucket, 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.take, everyone)
            with anyio.fail_after(BOUND_SECONDS):
                while await queue.waiting([raw]):
                    await anyio.lowlevel.checkpoint()
            await queue.put(put)
        assert await queue.depth() == 0

    async def test_what_cannot_be_read_is_dropped_and_holds_nothing_up(
        self, join: Join, redis_server: RedisServer, rabbitmq_server: RabbitServer
    ) -> None:
        queue = await join()
        await queue.put(bad := item())
        await queue.put(good := item())
        (bucket,) = redis_server.ask("HKEYS", f"{join.prefix}:queue:rabbitmq:buckets")
        connection = await aio_pika.connect(rabbitmq_server.url)
        async with connection:
            channel = await connection.channel()
            name = f"sandbox.{join.prefix}.{bucket.decode()}"
            kept = await (await channel.get_queue(name)).get()
            await channel.default_exchange.publish(aio_pika.Message(b"x {}", message_id=bad.execution_id), name)
            await channel.default_exchange.publish(aio_pika.Message(b"\xff", message_id=None), name)
            await kept.ack()
        assert (await take(queue)).item == good
        with anyio.move_on_after(0.5):
            await queue.take(everyone)
            raise AssertionError("there was nothing to take")
        assert await queue.depth() == 0
        assert await lying(rabbitmq_server, join.prefix) == 0

    async def test_an_idle_taker_costs_redis_less_than_one_command_a_second(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.take, everyone)
            await anyio.sleep(0.5)
            began, before = anyio.current_time(), redis_server.commands()
            await anyio.sleep(5)
            spent = redis_server.commands() - before
            seconds = anyio.current_time() - began
            tasks.cancel_scope.cancel()
        spent.pop("info", None)
        assert spent.total() < seconds, spent
