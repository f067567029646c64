"""ExecutionQueue contract: whose turn it is, and what a refusal holds up."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from sandbox_core.ports.queue import QueueItem
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, MakeQueue, everyone, item, settle, take_all


@pytest.mark.anyio
class QueueFairnessContract:
    """Principals in turn, inside one its sessions in turn, each in order of arrival."""

    async def test_one_lane_is_served_in_order_of_arrival(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        puts = [item() for _ in range(10)]
        for put in puts:
            await queue.put(put)
        assert await take_all(queue, 10) == puts

    async def test_a_long_queue_of_one_principal_does_not_hold_up_another(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for _ in range(50):
            await queue.put(item("greedy"))
        await queue.put(first := item("modest"))
        await queue.put(second := item("modest"))
        assert [put for put in await take_all(queue, 5) if put.principal == "modest"] == [first, second]

    async def test_principals_are_served_in_turn(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for principal in "aaaabbbcc":
            await queue.put(item(principal))
        served = [put.principal for put in await take_all(queue, 9)]
        assert [set(served[:3]), set(served[3:6]), set(served[6:8])] == [{"a", "b", "c"}, {"a", "b", "c"}, {"a", "b"}]

    async def test_a_principal_with_many_sessions_gets_one_turn(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for number in range(20):
            await queue.put(item("greedy", f"s{number}"))
        await queue.put(item("modest"))
        assert "modest" in [put.principal for put in await take_all(queue, 2)]

    async def test_sessions_of_one_principal_are_served_in_turn(self, make_queue: MakeQueue) -> None:
        queue = await make_queue()
        for session in ("s1", "s1", "s1", "s2", None):
            await queue.put(item("a", session))
        served = [put.session_id for put in await take_all(queue, 5)]
        assert set(served[:3]) == {"s1", "s2", None}
        assert served[3:] == ["s1", "s1"]

    async def test_a_refused_principal_holds_up_no_other(self, make_queue: MakeQueue) -> None:
        queue, gate = await make_queue(), Gate("full")
        await queue.put(item("full"))
        await queue.put(free := item("free"))
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(gate)
        assert delivery.item == free
        assert await queue.depth() == 1

    async def test_a_refused_session_holds_up_no_other_of_its_principal(self, make_queue: MakeQueue) -> None:
        queue, gate = await make_queue(), Gate("full")
        first, second, free = item("a", "full"), item("a", "full"), item("a", "free")
        for put in (first, second, free):
            await queue.put(put)
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(gate)
            assert delivery.item == free
            gate.shut.clear()
            await queue.recheck()
            assert [(await queue.take(gate)).item for _ in range(2)] == [first, second]

    @pytest.mark.parametrize("reason", ["recheck", "put", "done"])
    async def test_what_was_refused_is_asked_about_again_for_a_reason_only(
        self, make_queue: MakeQueue, reason: str
    ) -> None:
        queue, gate = await make_queue(), Gate("full")
        with anyio.fail_after(BOUND_SECONDS):
            await queue.put(item("free"))
            running = await queue.take(gate)
            await queue.put(refused := item("full"))
            taken: list[QueueItem] = []

            async def take() -> None:
                taken.append((await queue.take(gate)).item)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                while refused.execution_id not in gate.asked:
                    await anyio.lowlevel.checkpoint()
                await settle()
                assert gate.asked.count(refused.execution_id) == 1
                gate.shut.clear()
                match reason:
                    case "recheck":
                        await queue.recheck()
                    case "done":
                        await queue.done(running)
                    case _:
                        await queue.put(item("full"))
        assert taken == [refused]

    async def test_a_place_released_during_the_question_is_not_missed(self, make_queue: MakeQueue) -> None:
        queue, put, asking, may_answer = await make_queue(), item(), anyio.Event(), anyio.Event()
        answers = [False, True]

        async def admit(_: QueueItem) -> bool:
            asking.set()
            await may_answer.wait()
            return answers.pop(0)

        taken: list[QueueItem] = []

        async def take() -> None:
            taken.append((await queue.take(admit)).item)

        with anyio.fail_after(BOUND_SECONDS):
            await queue.put(put)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await asking.wait()
                await queue.recheck()
                may_answer.set()
        assert taken == [put]

    async def test_a_slow_question_holds_up_no_other_taker(self, make_queue: MakeQueue) -> None:
        queue, asking = await make_queue(), anyio.Event()

        async def ask_for_ever(_: QueueItem) -> bool:
            asking.set()
            await anyio.sleep_forever()
            return False

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                await queue.put(slow := item("slow"))
                tasks.start_soon(queue.take, ask_for_ever)
                await asking.wait()
                await queue.put(again := item("slow"))
                await queue.put(quick := item("quick"))
                # Whether the next of that lane is asked about meanwhile is the engine's affair.
                taken = [(await queue.take(everyone)).item]
                if taken == [again]:
                    taken.append((await queue.take(everyone)).item)
                assert taken[-1] == quick
                tasks.cancel_scope.cancel()
        assert (await take_all(queue, 1))[0] == slow
