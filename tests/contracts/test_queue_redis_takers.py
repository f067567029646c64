"""Several takers of one process of RedisQueue, and takers that leave: who looks, and where things go back to."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sandbox_adapters.queues.redis import RedisQueue
from sandbox_core.ports.queue import Admit, Delivery
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, everyone, item, take_all
from tests.contracts.test_queue_redis import Join, Slow, all_done, asked, blocked, join, only_tokens_wake, take
from tests.redis_server import RedisServer

__all__ = ["join", "only_tokens_wake"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Taker:
    """Takes one item, in a task of its own."""

    def __init__(self, queue: RedisQueue, admit: Admit, tasks: anyio.abc.TaskGroup) -> None:
        self._delivery: Delivery | None = None
        self._has = anyio.Event()
        self._scope = anyio.CancelScope()
        tasks.start_soon(self._take, queue, admit)

    async def taken(self) -> Delivery:
        with anyio.fail_after(BOUND_SECONDS):
            await self._has.wait()
        assert self._delivery is not None
        return self._delivery

    def leave(self) -> None:
        self._scope.cancel()

    async def _take(self, queue: RedisQueue, admit: Admit) -> None:
        with self._scope:
            self._delivery = await queue.take(admit)
            self._has.set()


async def took_the_last_while_another_waits(
    queue: RedisQueue, admit: Admit, server: RedisServer, tasks: anyio.abc.TaskGroup
) -> tuple[Slow, Taker, Taker]:
    """Return the admission and the taker that ask about the only item, and another of its process, that waits."""
    slow = Slow()
    slow.answer = True
    first = Taker(queue, slow, tasks)
    await blocked(server)
    await queue.put(item())
    with anyio.fail_after(BOUND_SECONDS):
        await slow.asked.wait()
    other = Taker(queue, admit, tasks)
    await blocked(server)
    return slow, first, other


@pytest.mark.anyio
@pytest.mark.usefixtures("only_tokens_wake")
class TestTakersOfOneProcess:
    async def test_a_token_is_not_lost_on_a_taker_that_waits_while_another_takes_the_last(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue, front = await join(visibility_seconds=60), await join()
        async with anyio.create_task_group() as tasks:
            slow, first, other = await took_the_last_while_another_waits(queue, everyone, redis_server, tasks)
            slow.may_answer.set()
            await first.taken()
            await front.put(put := item())
            assert (await other.taken()).item == put

    async def test_what_was_refused_is_asked_about_again_after_the_last_was_taken(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue, front, gate = await join(visibility_seconds=60), await join(), Gate("shut")
        await queue.put(item())
        running = await take(queue)
        async with anyio.create_task_group() as tasks:
            slow, first, other = await took_the_last_while_another_waits(queue, gate, redis_server, tasks)
            await front.put(put := item("shut"))
            with anyio.fail_after(BOUND_SECONDS):
                while not gate.asked:
                    await anyio.lowlevel.checkpoint()
            await blocked(redis_server)
            other.leave()
            await queue.done(running)
            slow.may_answer.set()
            await first.taken()
            gate.shut.clear()
            assert (await Taker(queue, gate, tasks).taken()).item == put


@pytest.mark.anyio
class TestTakersThatLeave:
    async def test_what_they_were_asked_about_keeps_its_order(self, join: Join) -> None:
        queues, admissions, puts = [await join() for _ in range(2)], [Slow(), Slow()], [item(), item()]
        for put in puts:
            await queues[0].put(put)
        async with anyio.create_task_group() as refusing, anyio.create_task_group() as leaving:
            await asked(queues[0], admissions[0], refusing)
            await asked(queues[1], admissions[1], leaving)
            admissions[0].may_answer.set()
            with anyio.fail_after(BOUND_SECONDS):
                while not await queues[1].depth():
                    await anyio.lowlevel.checkpoint()
            leaving.cancel_scope.cancel()
            refusing.cancel_scope.cancel()
        assert await take_all(queues[1], 2) == puts

    async def test_what_a_dead_one_had_keeps_its_order(self, join: Join, redis_server: RedisServer) -> None:
        puts = [item() for _ in range(4)]
        async with AsyncExitStack() as life:
            dying = await join(visibility_seconds=60, stack=life)
            for put in puts:
                await dying.put(put)
            for number, held in enumerate([await take(dying) for _ in range(3)]):
                redis_server.ask("ZADD", "one:queue:held", 1 + number, held.receipt)
        queue = await join()
        assert await take_all(queue, 4) == puts
        await all_done(redis_server)


@pytest.mark.anyio
async def test_what_is_asked_about_is_known_to_those_who_queue_what_is_not(join: Join) -> None:
    asking, other = await join(), await join()
    puts = [item() for _ in range(3)]
    for put in puts[:2]:
        await asking.put(put)
    async with anyio.create_task_group() as tasks:
        await asked(asking, Slow(), tasks)
        ids = [put.execution_id.encode() for put in puts]
        assert await other.waiting(ids) == set(ids[:2])
        tasks.cancel_scope.cancel()
