"""JetStreamQueue keeps the ExecutionQueue contract, and what it adds to it: several processes, and takers that die."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr

from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.queues.jetstream import JetStreamQueue
from sandbox_adapters.queues.jetstream_streams import Refused, Streams, Waiting
from sandbox_core.domain.errors import ServerDraining, ServerFull, StoreUnavailable
from sandbox_core.ports.queue import Delivery, ExecutionQueue, QueueItem
from sandbox_core.testing.queue_contract import ExecutionQueueContract
from sandbox_core.testing.queue_harness import Gate, MakeQueue, everyone, item, take_all
from tests.nats_server import NatsServer

BOUND_SECONDS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def satisfies_the_port(queue: JetStreamQueue) -> ExecutionQueue:
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
    ) -> JetStreamQueue: ...


async def opened(server: NatsServer, stack: AsyncExitStack, prefix: str, **options: object) -> JetStreamQueue:
    nats = NatsOptions(SecretStr(server.url), prefix=prefix, timeout_seconds=20)
    connection = await stack.enter_async_context(NatsConnection(nats))
    return await stack.enter_async_context(JetStreamQueue(connection=connection, **options))  # type: ignore[arg-type]  # of the test


class TestJetStreamQueue(ExecutionQueueContract):
    @pytest.fixture
    async def make_queue(self, anyio_backend: str, nats_server: NatsServer) -> AsyncIterator[MakeQueue]:
        async with AsyncExitStack() as stack:
            made = 0

            async def make(*, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
                nonlocal made
                made += 1
                options = {"max_depth": max_depth, "max_per_principal": max_per_principal}
                return await opened(nats_server, stack, f"queue{made}", **options)

            yield make


def joining(server: NatsServer, outer: AsyncExitStack) -> Join:
    async def open_one(
        *,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        visibility_seconds: float = 9.0,
        stack: AsyncExitStack | None = None,
    ) -> JetStreamQueue:
        options = {"max_depth": max_depth, "max_per_principal": max_per_principal}
        return await opened(server, stack or outer, "one", visibility_seconds=visibility_seconds, **options)

    return open_one


@pytest.fixture
async def join(anyio_backend: str, nats_server: NatsServer) -> AsyncIterator[Join]:
    async with AsyncExitStack() as outer:
        yield joining(nats_server, outer)


async def take(queue: JetStreamQueue) -> Delivery:
    with anyio.fail_after(BOUND_SECONDS):
        return await queue.take(everyone)


async def until_listening(server: NatsServer, how_many: int = 1) -> None:
    """Return when takers wait for a notice."""
    with anyio.fail_after(BOUND_SECONDS):
        while server.listeners("sandbox-one.notice") < how_many:  # noqa: ASYNC110  # the server tells nobody
            await anyio.sleep(0.01)


@pytest.mark.anyio
class TestSeveralProcesses:
    async def test_what_one_puts_a_waiting_other_takes(self, join: Join, nats_server: NatsServer) -> None:
        front, back = await join(), await join()
        for _ in range(3):
            taken: list[QueueItem] = []

            async def wait(taken: list[QueueItem] = taken) -> None:
                taken.append((await take(back)).item)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await until_listening(nats_server)
                await front.put(put := item("p.>*@x:", "s:*"))
            assert taken == [put]

    async def test_many_takers_in_many_processes_get_each_item_once(self, join: Join) -> None:
        front, backs = await join(), [await join() for _ in range(3)]
        puts = [item(f"p{number % 4}", f"s{number % 3}") for number in range(60)]
        taken: list[QueueItem] = []

        async def work(queue: JetStreamQueue, tasks: anyio.abc.TaskGroup) -> None:
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

    @pytest.mark.parametrize("number", [10058, 10065])
    async def test_who_loses_the_race_for_the_streams_uses_those_of_the_winner(
        self, join: Join, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """The server says so in two ways: the name is in use, or the subjects overlap with those that there are."""
        asked = Streams._ask_once

        async def too_late(streams: Streams, what: str, stream: str, question: dict[str, Any]) -> dict[str, Any]:
            found = await asked(streams, what, stream, question)
            if what == "STREAM.CREATE":
                raise Refused("a server", {"err_code": number, "description": "it is there"})
            return found

        monkeypatch.setattr(Streams, "_ask_once", too_late)
        nats_server.forget_everything()
        queue = await join()
        await queue.put(put := item("a"))
        assert (await take(queue)).item == put

    async def test_subjects_of_somebody_else_are_told(self, join: Join, nats_server: NatsServer) -> None:
        nats_server.forget_everything()
        foreign = {"name": "foreign", "subjects": ["sandbox-one.>"], "storage": "memory"}
        nats_server.ask("$JS.API.STREAM.CREATE.foreign", json.dumps(foreign).encode())
        queue = await join()
        with pytest.raises(StoreUnavailable, match="subjects overlap"):
            await queue.put(item("a"))

    async def test_the_bounds_are_exact_over_processes(self, join: Join) -> None:
        queues = [await join(max_depth=20, max_per_principal=8) for _ in range(3)]
        held = [await put_and_take(queues[0], item("a")) for _ in range(3)]
        refused, stored = Counter[str](), Counter[str]()

        async def put(queue: JetStreamQueue, principal: str) -> None:
            try:
                await queue.put(item(principal))
            except Exception as error:  # noqa: BLE001  # counted by kind
                refused[type(error).__name__] += 1
            else:
                stored[principal] += 1

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(put, queues[number % 3], "abc"[number // 20])
        assert await queues[0].depth() == 20
        assert refused == {"ServerFull": 40}
        assert max(stored.values()) <= 8
        for one in held:
            await queues[0].done(one)
        assert await queues[0].depth() == 20

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

    async def test_over_several_processes_a_long_lane_delays_another_by_one_turn_of_each(self, join: Join) -> None:
        front, backs = await join(), [await join() for _ in range(3)]
        for _ in range(40):
            await front.put(item("greedy"))
        for queue in backs:
            await take_all(queue, 1)
        modest = [item("modest") for _ in range(3)]
        for put in modest:
            await front.put(put)
        served = [(await take_all(queue, 1))[0] for _ in range(3) for queue in backs]
        assert set(modest) <= set(served[: 2 * len(backs)])

    async def test_a_notice_for_a_taker_that_has_left_wakes_another(self, join: Join, nats_server: NatsServer) -> None:
        busy, idle = await join(), await join()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy.take, everyone)
            await until_listening(nats_server)
            tasks.cancel_scope.cancel()
        taken: list[QueueItem] = []

        async def wait() -> None:
            taken.append((await take(idle)).item)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until_listening(nats_server, 2)
            for put in (puts := [item(), item()]):
                await busy.put(put)
            taken.append((await take(idle)).item)
        assert sorted(one.execution_id for one in taken) == sorted(put.execution_id for put in puts)


async def put_and_take(queue: JetStreamQueue, put: QueueItem) -> Delivery:
    await queue.put(put)
    return await take(queue)


@pytest.mark.anyio
class TestTakersThatDie:
    async def test_what_a_dead_taker_held_is_handed_out_again_at_the_head(self, join: Join) -> None:
        other = await join(visibility_seconds=3)
        async with AsyncExitStack() as life:
            dying = await join(visibility_seconds=3, stack=life)
            for put in (puts := [item(), item()]):
                await dying.put(put)
            assert (await take(dying)).item == puts[0]
        assert (await take(other)).item == puts[1]
        assert (await take(other)).item == puts[0]

    async def test_what_a_living_taker_holds_is_not(self, join: Join, nats_server: NatsServer) -> None:
        living, other = await join(visibility_seconds=3), await join(visibility_seconds=3)
        await living.put(item())
        held = await take(living)
        with anyio.move_on_after(4):
            await other.take(everyone)
            raise AssertionError("it was handed out twice")
        await living.done(held)
        assert nats_server.state("sandbox-one_held")["messages"] == 0
        assert nats_server.state("sandbox-one_waiting")["messages"] == 0

    async def test_done_after_it_came_back_forgets_it(self, join: Join, nats_server: NatsServer) -> None:
        queue, other = await join(visibility_seconds=30), await join(visibility_seconds=30)
        await queue.put(item())
        slow = await take(queue)
        nats_server.ask("$JS.API.STREAM.PURGE.sandbox-one_held")
        again = await take(other)
        assert again.item == slow.item
        await other.give_back(again)
        await queue.done(slow)
        assert await queue.depth() == 0

    async def test_a_lease_that_was_lengthened_holds_for_processes_that_know_the_shorter(
        self, join: Join, nats_server: NatsServer
    ) -> None:
        await (await join(visibility_seconds=1)).put(item())
        longer = await join(visibility_seconds=5)
        assert await longer.depth() == 1
        config = nats_server.ask("$JS.API.STREAM.INFO.sandbox-one_held")["config"]
        assert config["max_age"] == 5_000_000_000


@pytest.mark.anyio
class TestBeyondTheContract:
    async def test_putting_what_waits_already_changes_nothing(self, join: Join) -> None:
        for queue in (await join(max_depth=1), await join(max_depth=2)):
            await queue.put(put := item())
            await queue.put(put)
            assert await queue.depth() == 1
            await take_all(queue, 1)

    async def test_what_cannot_be_read_is_dropped_and_holds_nothing_up(
        self, join: Join, nats_server: NatsServer
    ) -> None:
        queue = await join()
        await queue.put(good := item())
        (subject,) = nats_server.state("sandbox-one_waiting")["subjects"]
        stored = nats_server.ask("$JS.API.STREAM.MSG.GET.sandbox-one_waiting", b'{"seq": 1}')["message"]["data"]
        await queue.remove(good.execution_id)
        other = item().execution_id
        for content in (b"", b"{}", b"x|y {}", base64.b64decode(stored)):
            assert "seq" in nats_server.ask(subject.replace(good.execution_id, other), content)
            assert (await queue.stats()).depth == 1
            await queue.put(good)
            assert (await take_all(queue, 1)) == [good]
            assert await queue.depth() == 0
        assert "seq" in nats_server.ask(
            subject.replace("sandbox-one.waiting.", "sandbox-one.waiting.x"), base64.b64decode(stored)
        )
        assert "seq" in nats_server.ask("sandbox-one.waiting.a.b.c.$", b"")
        await queue.put(good)
        assert (await take_all(queue, 1)) == [good]

    async def test_an_empty_queue_leaves_nothing(self, join: Join, nats_server: NatsServer) -> None:
        queue = await join()
        for number in range(20):
            await queue.put(item(f"p{number % 5}", f"s{number}"))
        await queue.give_back(await take(queue))
        await take_all(queue, 20)
        for stream in ("sandbox-one_waiting", "sandbox-one_held"):
            assert nats_server.state(stream)["messages"] == 0

    async def test_an_idle_taker_costs_less_than_half_a_request_a_second(
        self, join: Join, nats_server: NatsServer
    ) -> None:
        queue = await join()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.take, everyone)
            await until_listening(nats_server)
            before, seconds = nats_server.requests(), 6.0
            await anyio.sleep(seconds)
            spent = nats_server.requests() - before
            tasks.cancel_scope.cancel()
        assert spent <= 1 + seconds / 2

    async def test_a_long_list_is_not_read_for_each_item_nor_for_each_refusal(
        self, join: Join, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sandbox_adapters.queues.jetstream_room.ENTRIES_PER_SECOND", 20)
        queue = await join(max_depth=300)
        puts = [item(f"p{number % 3}") for number in range(300)]
        for put in puts:
            await queue.put(put)
        lists = 0
        listed = queue.streams.listed

        async def counted() -> Waiting:
            nonlocal lists
            lists += 1
            return await listed()

        queue.streams.listed = counted  # type: ignore[method-assign]  # counts
        for _ in range(60):
            with pytest.raises(ServerFull):
                await queue.put(item())
        assert lists < 10
        lists = 0
        assert len(await take_all(queue, 300)) == 300
        assert lists < 200

    async def test_who_only_puts_remembers_no_lane_for_ever(self, join: Join) -> None:
        front, back = await join(max_depth=3), await join()
        for number in range(10):
            await front.put(item("p", f"s{number}"))
            await take_all(back, 1)
        assert len(front._turns) <= 3
