"""RedisQueue keeps the ExecutionQueue contract, and what it adds to it: several processes, and takers that die."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr

from sandbox_adapters.queues import redis as redis_queue
from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.queues.redis_prelude import MAX_TOKENS
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
    connection = await stack.enter_async_context(RedisConnection(RedisOptions(url, prefix=prefix, timeout_seconds=20)))
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


async def blocked(server: RedisServer, count: int = 1) -> None:
    """Return when so many listeners wait in Redis."""
    with anyio.fail_after(BOUND_SECONDS):
        while server.ask("CLIENT", "LIST").count(b" flags=b ") < count:
            await anyio.lowlevel.checkpoint()


@pytest.fixture
def only_tokens_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let takers look by themselves so late that only a token can wake them within a test."""
    monkeypatch.setattr(redis_queue, "LOOK_SECONDS", 600.0)


async def all_done(server: RedisServer) -> None:
    """Return when Redis knows of nothing that was handed over and may come back."""
    with anyio.fail_after(BOUND_SECONDS):
        while server.ask("EXISTS", "one:queue:held", "one:queue:held:items"):
            await anyio.lowlevel.checkpoint()


class Slow:
    """An admission that answers when told to."""

    def __init__(self) -> None:
        self.about: QueueItem | None = None
        self.asked, self.may_answer, self.answer = anyio.Event(), anyio.Event(), False

    async def __call__(self, about: QueueItem) -> bool:
        if self.about is not None:
            return False
        self.about = about
        self.asked.set()
        await self.may_answer.wait()
        return self.answer


async def asked(queue: RedisQueue, admission: Slow, tasks: anyio.abc.TaskGroup) -> None:
    """Return when a taker of this queue asks."""
    tasks.start_soon(queue.take, admission)
    with anyio.fail_after(BOUND_SECONDS):
        await admission.asked.wait()


@pytest.mark.anyio
class TestQuestions:
    @pytest.mark.parametrize("first_to_refuse", [0, 1])
    async def test_takers_ask_about_one_lane_at_once_and_what_they_refuse_keeps_its_order(
        self, join: Join, first_to_refuse: int
    ) -> None:
        *queues, third = [await join() for _ in range(3)]
        admissions = [Slow(), Slow()]
        puts = [item() for _ in range(4)]
        for put in puts:
            await queues[0].put(put)
        async with anyio.create_task_group() as tasks:
            for queue, admission in zip(queues, admissions, strict=True):
                await asked(queue, admission, tasks)
            assert [admission.about for admission in admissions] == puts[:2]
            assert await queues[0].depth() == 2
            with anyio.fail_after(BOUND_SECONDS):
                for number in (first_to_refuse, 1 - first_to_refuse):
                    before = await queues[0].depth()
                    admissions[number].may_answer.set()
                    while await queues[0].depth() == before:
                        await anyio.lowlevel.checkpoint()
            assert await take_all(third, 4) == puts
            tasks.cancel_scope.cancel()

    async def test_what_is_removed_during_the_question_comes_back_no_more(self, join: Join) -> None:
        asking, other = await join(), await join()
        await asking.put(put := item())
        async with anyio.create_task_group() as tasks:
            await asked(asking, admission := Slow(), tasks)
            assert not await other.remove(put.execution_id)
            admission.may_answer.set()
            await other.put(last := item())
            assert (await take(other)).item == last
            assert await other.depth() == 0
            tasks.cancel_scope.cancel()

    async def test_who_refuses_and_takes_another_wakes_those_who_might_admit_it(
        self, join: Join, redis_server: RedisServer, only_tokens_wake: None
    ) -> None:
        refusing, idle, gate = await join(), await join(), Gate("shut")
        taken: list[QueueItem] = []

        async def wait() -> None:
            taken.append((await idle.take(everyone)).item)

        def eat() -> None:
            redis_server.ask("BLPOP", "one:queue:wake", BOUND_SECONDS)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refusing.take, gate)
                await blocked(redis_server, 1)
                tasks.start_soon(anyio.to_thread.run_sync, eat)
                await blocked(redis_server, 2)
                tasks.start_soon(wait)
                await blocked(redis_server, 3)
                await idle.put(shut := item("shut"))
                while not gate.asked:
                    await anyio.lowlevel.checkpoint()
                await blocked(redis_server, 3)
                await idle.put(free := item("free"))
                assert (await refusing.take(gate)).item == free
                while not taken:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert taken == [shut]


@pytest.mark.anyio
@pytest.mark.usefixtures("only_tokens_wake")
class TestTokens:
    async def test_an_idle_taker_is_woken_for_what_was_put_when_there_were_too_many_tokens(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        front, takers = await join(max_depth=200), [await join(visibility_seconds=60) for _ in range(3)]
        for taker in takers:
            await front.put(item())
            await taker.done(await take(taker))
        for _ in range(MAX_TOKENS + 10):
            await front.put(item())
        assert redis_server.ask("LLEN", "one:queue:wake") == MAX_TOKENS
        redis_server.ask("LTRIM", "one:queue:wake", 0, 0)
        async with anyio.create_task_group() as tasks:
            for taker in takers:
                tasks.start_soon(take, taker)
        assert await front.depth() == MAX_TOKENS + 7

    async def test_with_work_for_one_a_hand_over_is_one_script_and_one_token(
        self, join: Join, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # However long a hand-over takes, it tells of the one before.
        monkeypatch.setattr(redis_queue, "ACKNOWLEDGE_SECONDS", 600.0)
        front, back = await join(), await join(visibility_seconds=600)
        taken = 0

        async def work() -> None:
            nonlocal taken
            while True:
                await back.done(await back.take(everyone))
                taken += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await blocked(redis_server)
            before = redis_server.commands()
            for number in range(20):
                await front.put(item())
                with anyio.fail_after(BOUND_SECONDS):
                    while taken == number:
                        await anyio.lowlevel.checkpoint()
            spent = redis_server.commands() - before
            tasks.cancel_scope.cancel()
        assert spent["blpop"] <= 21
        assert 40 <= spent["evalsha"] <= 42  # a put and a hand-over each, and a look of the taker that is done


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
    async def test_what_a_dead_taker_held_is_handed_out_again(self, join: Join) -> None:
        other = await join(visibility_seconds=0.6)
        async with AsyncExitStack() as life:
            dying = await join(visibility_seconds=0.6, stack=life)
            await dying.put(put := item())
            assert (await take(dying)).item == put
        assert (await take(other)).item == put

    async def test_what_comes_back_is_at_the_head(self, join: Join, redis_server: RedisServer) -> None:
        other = await join()
        async with AsyncExitStack() as life:
            dying = await join(visibility_seconds=60, stack=life)
            for put in (puts := [item() for _ in range(3)]):
                await dying.put(put)
            held = await take(dying)
            assert held.item == puts[0]
        assert (await take(other)).item == puts[1]
        redis_server.ask("ZADD", "one:queue:held", 1, held.receipt)
        assert await take_all(other, 2) == [puts[0], puts[2]]

    async def test_what_a_living_taker_holds_is_not(self, join: Join, redis_server: RedisServer) -> None:
        living, other = await join(visibility_seconds=3), await join(visibility_seconds=3)
        await living.put(item())
        held = await take(living)
        with anyio.move_on_after(4):
            await other.take(everyone)
            raise AssertionError("it was handed out twice")
        await living.done(held)
        await all_done(redis_server)

    async def test_a_question_that_is_never_answered_is_asked_elsewhere(self, join: Join) -> None:
        hanging, other = await join(visibility_seconds=0.5), await join(visibility_seconds=0.5)
        await hanging.put(put := item())
        async with anyio.create_task_group() as tasks:
            await asked(hanging, Slow(), tasks)
            assert (await take(other)).item == put
            tasks.cancel_scope.cancel()
        assert await other.depth() == 0

    async def test_an_acknowledgement_is_told_when_the_process_ends(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        async with AsyncExitStack() as life:
            ending = await join(stack=life)
            await ending.put(item())
            await ending.done(await take(ending))
        assert redis_server.ask("EXISTS", "one:queue:held", "one:queue:held:items") == 0

    async def test_done_after_it_came_back_forgets_it(self, join: Join, redis_server: RedisServer) -> None:
        queue = await join(visibility_seconds=30)
        await queue.put(item())
        slow = await take(queue)
        redis_server.ask("ZADD", "one:queue:held", 1, slow.receipt)
        again = await take(queue)
        assert again.item == slow.item
        await queue.give_back(again)
        assert await queue.depth() == 1
        await queue.done(slow)
        with anyio.fail_after(BOUND_SECONDS):
            while await queue.depth():
                await anyio.lowlevel.checkpoint()


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
        await all_done(redis_server)
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

    async def test_one_that_takes_no_writes_is_not_there_although_it_can_be_read(
        self, own_redis: RedisServer, anyio_backend: str
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await opened(own_redis, stack, "one")
            await queue.put(item())
            assert await queue.depth() == 1
            own_redis.ask("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="out of memory"):
                await queue.depth()
            own_redis.ask("CONFIG", "SET", "maxmemory", 0)
            assert await queue.depth() == 1

    async def test_what_is_done_while_redis_is_away_is_told_when_it_is_back(
        self, own_redis: RedisServer, anyio_backend: str
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await opened(own_redis, stack, "one", visibility_seconds=1)
            await queue.put(item())
            held = await take(queue)
            own_redis.kill()
            await queue.done(held)
            await anyio.sleep(2 * redis_queue.ACKNOWLEDGE_SECONDS)
            own_redis.start()
            await all_done(own_redis)
            assert await queue.depth() == 0

    async def test_what_cannot_be_told_is_bounded(
        self, own_redis: RedisServer, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_queue, "MAX_DONE", 2)
        async with AsyncExitStack() as stack:
            queue = await opened(own_redis, stack, "one", visibility_seconds=3)
            puts = [item() for _ in range(3)]
            for put in puts:
                await queue.put(put)
            held = [await take(queue) for _ in puts]
            own_redis.kill()
            for delivery in held:
                await queue.done(delivery)
            own_redis.start()
            assert (await take(queue)).item == puts[2]

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
