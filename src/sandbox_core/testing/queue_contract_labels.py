"""ExecutionQueue contract: who may take what needs labels, and that it holds up nobody else."""

from __future__ import annotations

import anyio
import pytest

from sandbox_core.ports.queue import Delivery, ExecutionQueue, QueueItem
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, MakeQueue, everyone, item, settle, take_all

_GPU = frozenset({"gpu"})


@pytest.mark.anyio
class QueueLabelsContract:
    """An item goes to a taker that offers all its labels, and to no other."""

    @pytest.mark.parametrize("offers", [{"gpu", "arm64"}, {"gpu", "arm64", "big.memory-1"}])
    async def test_who_offers_every_label_takes_it_as_it_was_put(self, make_queue: MakeQueue, offers: set[str]) -> None:
        queue = await make_queue()
        for session in (None, "s:1"):
            await queue.put(put := item("bob@example.com", session, "gpu", "arm64"))
            with anyio.fail_after(BOUND_SECONDS):
                delivery = await queue.take(everyone, frozenset(offers))
            assert delivery.item == put
            assert delivery.item.labels == ("arm64", "gpu")
            await queue.done(delivery)

    @pytest.mark.parametrize("offers", [(), ("arm64",), ("gp",), ("gpu2", "xgpu"), ("gpu",)])
    async def test_who_lacks_a_label_is_not_even_asked(self, make_queue: MakeQueue, offers: tuple[str, ...]) -> None:
        queue, gate = await make_queue(), Gate()
        await queue.put(needy := item("a", "s", "gpu", "large"))
        await queue.put(plain := item("z", "s"))
        with anyio.fail_after(BOUND_SECONDS):
            assert (await queue.take(gate, frozenset(offers))).item == plain
        assert gate.asked == [plain.execution_id]
        assert await queue.depth() == 1
        assert await take_all(queue, 1, "gpu", "large") == [needy]

    async def test_what_needs_no_label_goes_to_anybody(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        puts = [item("a"), item("b", "s")]
        for put in puts:
            await queue.put(put)
        assert await take_all(queue, 1, "gpu") + await take_all(queue, 1) == puts

    async def test_what_nobody_here_may_take_holds_up_not_even_its_session(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        needy = [item("a", "s", "gpu") for _ in range(20)]
        for put in needy:
            await queue.put(put)
        plain = [item("a", "s") for _ in range(3)]
        for put in plain:
            await queue.put(put)
        assert await take_all(queue, 3) == plain
        assert await queue.depth() == 20
        assert await take_all(queue, 20, "gpu") == needy

    async def test_an_idle_taker_without_the_label_takes_no_wake_up_away(self, make_queue: MakeQueue) -> None:
        queue, gate = await make_queue(), Gate()
        got = await _with_idle_takers(queue, gate, item("a", None, "gpu"), item("a", None, "gpu"))
        assert [put.labels for put in got] == [("gpu",), ("gpu",)]
        assert len(gate.asked) == 2

    async def test_an_idle_taker_with_labels_is_woken_for_what_needs_none(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        taken: list[QueueItem] = []

        async def take() -> None:
            taken.append((await queue.take(everyone, _GPU)).item)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await settle()
                await queue.put(put := item())
        assert taken == [put]

    async def test_principals_are_served_in_turn_whatever_labels_they_need(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for number in range(20):
            await queue.put(item("greedy", None, *(("gpu",), ("arm64",), ())[number % 3]))
        modest = [item("modest", None, "gpu"), item("modest")]
        for put in modest:
            await queue.put(put)
        served = await take_all(queue, 4, "gpu", "arm64")
        assert {put.execution_id for put in served if put.principal == "modest"} == {put.execution_id for put in modest}
        assert len(await take_all(queue, 18, "gpu", "arm64")) == 18

    async def test_one_lane_with_labels_is_served_in_order_of_arrival(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        puts = [item("a", "s", "gpu") for _ in range(8)]
        for put in puts:
            await queue.put(put)
        assert await take_all(queue, 8, "gpu") == puts

    async def test_what_needs_labels_is_given_back_to_the_head_and_wakes_who_may_take_it(
        self, make_queue: MakeQueue
    ) -> None:
        queue = await make_queue()
        first, second = item("a", None, "gpu"), item("a", None, "gpu")
        await queue.put(first)
        with anyio.fail_after(BOUND_SECONDS):
            held = await queue.take(everyone, _GPU)
            taken: list[Delivery] = []

            async def take() -> None:
                taken.append(await queue.take(everyone, _GPU))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await settle()
                await queue.give_back(held)
            await queue.put(second)
            await queue.give_back(taken[0])
        assert await take_all(queue, 2, "gpu") == [first, second]

    async def test_what_needs_labels_is_removed_like_any_other(self, make_queue: MakeQueue) -> None:
        queue = await make_queue(max_depth=2)
        await queue.put(first := item("a", "s", "gpu"))
        await queue.put(second := item("a", "s", "gpu"))
        assert await queue.remove(first.execution_id)
        assert not await queue.remove(first.execution_id)
        await queue.put(plain := item("a", "s"))
        assert await take_all(queue, 1, "gpu") == [second]
        assert await take_all(queue, 1) == [plain]
        assert await queue.depth() == 0


async def _with_idle_takers(queue: ExecutionQueue, gate: Gate, *puts: QueueItem) -> list[QueueItem]:
    """Put while takers without labels wait, and as many with the gpu; return what the latter got."""
    taken: list[QueueItem] = []
    enough = anyio.Event()

    async def take() -> None:
        taken.append((await queue.take(gate, _GPU)).item)
        if len(taken) == len(puts):
            enough.set()

    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in puts:
                tasks.start_soon(queue.take, gate)
            await settle()
            for _ in puts:
                tasks.start_soon(take)
            await settle()
            for put in puts:
                await queue.put(put)
            await enough.wait()
            tasks.cancel_scope.cancel()
    return taken
