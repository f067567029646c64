"""ExecutionQueue contract: how much may wait, and what a full queue says."""

from __future__ import annotations

import anyio
import pytest

from sandbox_core.domain.errors import ServerFull
from sandbox_core.ports.queue import QueueStats
from sandbox_core.testing.queue_harness import BOUND_SECONDS, MakeQueue, everyone, item, take_all


@pytest.mark.anyio
class QueueBoundsContract:
    """The bounds hold, and room is room again when something left."""

    async def test_a_full_queue_refuses_and_says_when_to_try_again(self, make_queue: MakeQueue) -> None:
        queue = await make_queue(max_depth=3)
        puts = [item(f"p{number}") for number in range(3)]
        for put in puts:
            await queue.put(put)
        with pytest.raises(ServerFull) as caught:
            await queue.put(item("late"))
        assert 1 <= caught.value.retry_after_seconds <= 30
        assert await queue.depth() == 3
        assert set(await take_all(queue, 3)) == set(puts)

    async def test_it_tells_since_when_what_waits_longest_waits_or_never(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        assert await queue.stats() == QueueStats(0, None)
        puts = [item(f"p{number % 2}", f"s{number}") for number in range(3)]
        for put in puts:
            await queue.put(put)
        told = (await queue.stats()).oldest_queued_at is not None
        for left in (3, 2, 1):
            oldest = puts[3 - left]
            assert await queue.stats() == QueueStats(left, oldest.queued_at if told else None)
            with anyio.fail_after(BOUND_SECONDS):
                delivery = await queue.take(everyone)
            assert delivery.item == oldest
            await queue.give_back(delivery)
            assert await queue.stats() == QueueStats(left, oldest.queued_at if told else None)
            await take_all(queue, 1)
        assert await queue.stats() == QueueStats(0, None)

    async def test_one_principal_cannot_fill_the_queue(self, make_queue: MakeQueue) -> None:
        queue = await make_queue(max_depth=10, max_per_principal=2)
        for session in ("s1", "s2"):
            await queue.put(item("greedy", session))
        with pytest.raises(ServerFull):
            await queue.put(item("greedy", "s3"))
        await queue.put(item("modest"))
        assert await queue.depth() == 3

    @pytest.mark.parametrize("leaving", ["take", "remove"])
    async def test_what_leaves_makes_room(self, make_queue: MakeQueue, leaving: str) -> None:
        queue = await make_queue(max_depth=2, max_per_principal=2)
        await queue.put(first := item())
        await queue.put(item())
        if leaving == "take":
            with anyio.fail_after(BOUND_SECONDS):
                await queue.take(everyone)
        else:
            await queue.remove(first.execution_id)
        await queue.put(item())
        with pytest.raises(ServerFull):
            await queue.put(item())

    async def test_what_is_given_back_has_room_in_a_full_queue(self, make_queue: MakeQueue) -> None:
        queue = await make_queue(max_depth=1)
        await queue.put(first := item())
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
        await queue.put(second := item())
        await queue.give_back(delivery)
        with pytest.raises(ServerFull):
            await queue.put(item())
        assert await take_all(queue, 2) == [first, second]

    async def test_puts_at_once_never_exceed_the_bound(self, make_queue: MakeQueue) -> None:
        queue = await make_queue(max_depth=7)
        refused: list[ServerFull] = []

        async def put() -> None:
            try:
                await queue.put(item())
            except ServerFull as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(put)
        assert await queue.depth() == 7
        assert len(refused) == 13
