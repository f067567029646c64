"""ExecutionQueue contract: nothing is lost, nothing is handed to two."""

from __future__ import annotations

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.queue import Delivery, ExecutionQueue, QueueItem
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, MakeQueue, everyone, item, settle, take_all


@pytest.mark.anyio
class QueueDeliveryContract:
    """What is put is taken, once, unless it is given back."""

    async def test_an_item_is_taken_as_it_was_put(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for put in (item(), item("bob@example.com", "s:1")):
            await queue.put(put)
            assert await queue.depth() == 1
            with anyio.fail_after(BOUND_SECONDS):
                delivery = await queue.take(everyone)
            assert delivery.item == put
            assert await queue.depth() == 0
            await queue.done(delivery)

    async def test_a_taker_waits_for_the_next_put(self, make_queue: MakeQueue) -> None:
        queue, put = await make_queue(), item()
        taken: list[QueueItem] = []

        async def take() -> None:
            taken.append((await queue.take(everyone)).item)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await settle()
                await queue.put(put)
        assert taken == [put]

    async def test_several_takers_get_each_item_once(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        puts = [item(f"p{number % 3}", f"s{number % 5}") for number in range(40)]
        taken: list[ExecutionId] = []

        async def take(tasks: anyio.abc.TaskGroup) -> None:
            while True:
                delivery = await queue.take(Gate())
                taken.append(delivery.item.execution_id)
                await queue.done(delivery)
                if len(taken) == len(puts):
                    tasks.cancel_scope.cancel()

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(take, tasks)
                for put in puts:
                    await queue.put(put)
        assert sorted(taken) == sorted(put.execution_id for put in puts)

    async def test_a_cancelled_taker_loses_nothing(self, make_queue: MakeQueue) -> None:
        queue, put = await make_queue(), item()
        with anyio.move_on_after(0.01):
            await queue.take(everyone)
        await queue.put(put)
        assert await take_all(queue, 1) == [put]

    async def test_a_taker_cancelled_while_it_asks_loses_nothing(self, make_queue: MakeQueue) -> None:
        queue, put, asking = await make_queue(), item(), anyio.Event()
        await queue.put(put)

        async def ask_for_ever(_: QueueItem) -> bool:
            asking.set()
            await anyio.sleep_forever()
            return True

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.take, ask_for_ever)
                await asking.wait()
                tasks.cancel_scope.cancel()
        assert await queue.depth() == 1
        assert await take_all(queue, 1) == [put]

    async def test_an_item_is_waiting_or_delivered_when_a_taker_is_cancelled_at_any_moment(
        self, make_queue: MakeQueue
    ) -> None:
        for moment in range(12):
            queue, put = await make_queue(), item()
            delivered: list[Delivery] = []

            async def take(queue: ExecutionQueue = queue, delivered: list[Delivery] = delivered) -> None:
                delivered.append(await queue.take(Gate()))

            with anyio.fail_after(BOUND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(take)
                    await settle()
                    await queue.put(put)
                    for _ in range(moment):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                assert await queue.depth() + len(delivered) == 1
                if not delivered:
                    assert await take_all(queue, 1) == [put]

    async def test_an_error_of_the_admission_passes_and_loses_nothing(self, make_queue: MakeQueue) -> None:
        queue, put = await make_queue(), item()
        await queue.put(put)

        async def fail(_: QueueItem) -> bool:
            raise ZeroDivisionError

        for _ in range(2):
            with anyio.fail_after(BOUND_SECONDS), pytest.raises(ZeroDivisionError):
                await queue.take(fail)
        assert await take_all(queue, 1) == [put]

    async def test_what_is_given_back_is_first_again(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        first, second = item(), item()
        await queue.put(first)
        await queue.put(second)
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
        await queue.give_back(delivery)
        assert await queue.depth() == 2
        assert await take_all(queue, 2) == [first, second]

    async def test_giving_back_wakes_a_taker(self, make_queue: MakeQueue) -> None:
        queue, put = await make_queue(), item()
        await queue.put(put)
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.take, everyone)
                await settle()
                await queue.give_back(delivery)
        assert await queue.depth() == 0

    async def test_done_is_final_and_may_be_said_twice(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        await queue.put(item())
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
        await queue.done(delivery)
        await queue.done(delivery)
        assert await queue.depth() == 0
        put = item()
        await queue.put(put)
        assert await take_all(queue, 1) == [put]

    async def test_a_waiting_item_is_removed_once(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        first, second = item(), item()
        await queue.put(first)
        await queue.put(second)
        assert await queue.remove(first.execution_id)
        assert not await queue.remove(first.execution_id)
        assert await queue.depth() == 1
        assert await take_all(queue, 1) == [second]

    async def test_what_was_taken_or_never_put_cannot_be_removed(self, make_queue: MakeQueue) -> None:
        queue, put = await make_queue(), item()
        await queue.put(put)
        with anyio.fail_after(BOUND_SECONDS):
            await queue.take(everyone)
        assert not await queue.remove(put.execution_id)
        assert not await queue.remove(item().execution_id)
