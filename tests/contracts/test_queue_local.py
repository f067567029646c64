"""LocalQueue keeps the ExecutionQueue contract, and what it adds to it."""

from __future__ import annotations

import anyio
import pytest

from sandbox_adapters.queues.local import LocalQueue
from sandbox_core.domain.errors import ServerDraining, ServerFull
from sandbox_core.ports.queue import ExecutionQueue, QueueItem, QueueStats
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.queue_contract import ExecutionQueueContract
from sandbox_core.testing.queue_harness import Gate, MakeQueue, everyone, item, settle


def satisfies_the_port(queue: LocalQueue) -> ExecutionQueue:
    """Checked by mypy."""
    return queue


class TestLocalQueue(ExecutionQueueContract):
    @pytest.fixture
    def make_queue(self) -> MakeQueue:
        async def make(*, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
            return LocalQueue(max_depth=max_depth, max_per_principal=max_per_principal)

        return make


@pytest.mark.anyio
async def test_it_tells_since_when_the_oldest_waits() -> None:
    queue = LocalQueue()
    first, second = item("p1"), item("p2")
    for put in (second, first):
        await queue.put(put)
    assert await queue.stats() == QueueStats(2, first.queued_at)


@pytest.mark.anyio
class TestRetryAfter:
    async def test_it_is_the_recent_time_between_hand_overs(self, fake_clock: FakeClock) -> None:
        queue = LocalQueue(max_depth=2, clock=fake_clock)
        for _ in range(2):
            await queue.put(item())
        for _ in range(5):
            await fake_clock.advance(7)
            await queue.done(await queue.take(everyone))
            await queue.put(item())
        assert await self._refused(queue) == 7

    async def test_idle_time_does_not_count(self, fake_clock: FakeClock) -> None:
        queue = LocalQueue(max_depth=1, clock=fake_clock)
        for _ in range(5):
            await fake_clock.advance(1000)
            await queue.put(item())
            await fake_clock.advance(2)
            await queue.done(await queue.take(everyone))
        await queue.put(item())
        assert await self._refused(queue) == 2

    @pytest.mark.parametrize(("seconds", "said"), [(0.001, 1), (29.5, 30), (5000, 30)])
    async def test_it_is_1_to_30_seconds(self, fake_clock: FakeClock, seconds: float, said: int) -> None:
        queue = LocalQueue(max_depth=1, clock=fake_clock)
        await queue.put(item())
        await fake_clock.advance(seconds)
        await queue.take(everyone)
        await queue.put(item())
        assert await self._refused(queue) == said

    async def _refused(self, queue: LocalQueue) -> int:
        with pytest.raises(ServerFull) as caught:
            await queue.put(item())
        return caught.value.retry_after_seconds


@pytest.mark.anyio
class TestBeyondTheContract:
    async def test_what_arrives_at_once_has_the_places_that_are_free_and_the_room_behind_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_adapters.queues.local._LET_TAKE_SECONDS", 600.0)
        queue, places, refused = LocalQueue(max_depth=1), anyio.Semaphore(4), []

        async def put() -> None:
            try:
                await queue.put(item())
            except ServerFull as error:
                refused.append(error)

        async def admit(_: QueueItem) -> bool:
            await settle()
            return True

        async def serve() -> None:
            while True:
                await places.acquire()
                await queue.take(admit)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                async with anyio.create_task_group() as burst:
                    for _ in range(9):
                        burst.start_soon(put)
                assert (await queue.depth(), len(refused)) == (1, 4)
                tasks.cancel_scope.cancel()

    async def test_a_full_queue_that_no_taker_may_take_from_refuses_at_once(self, fake_clock: FakeClock) -> None:
        queue, asked = LocalQueue(max_depth=1, clock=fake_clock), anyio.Event()

        async def refuse(_: QueueItem) -> bool:
            asked.set()
            return False

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.take, refuse)
                await queue.put(item())
                await asked.wait()
                with pytest.raises(ServerFull):
                    await queue.put(item())
                tasks.cancel_scope.cancel()

    async def test_who_waits_for_room_is_told_when_the_queue_closes(self) -> None:
        queue, asking, taking = LocalQueue(max_depth=1), anyio.Event(), anyio.CancelScope()
        refused: list[ServerDraining] = []

        async def never(_: QueueItem) -> bool:
            asking.set()
            await anyio.sleep_forever()
            return True

        async def take() -> None:
            with taking:
                await queue.take(never)

        async def put() -> None:
            with pytest.raises(ServerDraining) as caught:
                await queue.put(item())
            refused.append(caught.value)

        with anyio.fail_after(60):
            await queue.put(item())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await asking.wait()
                tasks.start_soon(put)
                await settle()
                tasks.start_soon(queue.close)
                await settle()
                taking.cancel()
        assert len(refused) == 1

    async def test_putting_what_waits_already_changes_nothing(self) -> None:
        queue, put = LocalQueue(max_depth=1), item()
        await queue.put(put)
        await queue.put(put)
        assert await queue.depth() == 1

    async def test_what_is_removed_during_the_question_is_forgotten_when_refused(self) -> None:
        queue, put, asking, may_answer = LocalQueue(), item(), anyio.Event(), anyio.Event()

        async def refuse(_: QueueItem) -> bool:
            asking.set()
            await may_answer.wait()
            return False

        with anyio.fail_after(60):
            await queue.put(put)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.take, refuse)
                await asking.wait()
                assert not await queue.remove(put.execution_id)
                may_answer.set()
                await settle()
                assert await queue.depth() == 0
                tasks.cancel_scope.cancel()

    async def test_closing_returns_what_waits_and_refuses_more(self) -> None:
        queue = LocalQueue()
        puts = [item(), item("bob", "s")]
        for put in puts:
            await queue.put(put)
        assert list(await queue.close()) == puts
        assert await queue.depth() == 0
        assert list(await queue.close()) == []
        with pytest.raises(ServerDraining):
            await queue.put(item())

    async def test_closing_waits_for_the_question_of_a_cancelled_taker(self) -> None:
        queue, put, asking = LocalQueue(), item(), anyio.Event()

        async def ask_for_ever(_: QueueItem) -> bool:
            asking.set()
            await anyio.sleep_forever()
            return True

        with anyio.fail_after(60):
            await queue.put(put)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.take, ask_for_ever)
                await asking.wait()
                with anyio.CancelScope(shield=True):
                    closed: list[QueueItem] = []

                    async def close() -> None:
                        closed.extend(await queue.close())

                    async with anyio.create_task_group() as closing:
                        closing.start_soon(close)
                        await settle()
                        assert closed == []
                        tasks.cancel_scope.cancel()
                    assert closed == [put]

    async def test_empty_lanes_leave_nothing_behind(self) -> None:
        queue = LocalQueue()
        for number in range(50):
            await queue.put(item(f"p{number}", f"s{number}"))
        for _ in range(25):
            await queue.done(await queue.take(Gate()))
        for execution_id in list(queue._waiting):
            await queue.remove(execution_id)
        assert (len(queue._ring), len(queue._waiting), len(queue._taken)) == (0, 0, 0)
