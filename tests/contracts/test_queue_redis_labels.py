"""Labels in RedisQueue: who is woken, what is left behind, and what is bounded."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.queues.redis_items import decode_item, encode_item, lane_of
from sandbox_adapters.queues.redis_prelude import MAX_TOKENS
from sandbox_adapters.queues.redis_scripts import MAX_KINDS, MAX_SETS
from sandbox_core.domain.errors import ServerFull, StoredDataCorrupt
from sandbox_core.ports.queue import QueueItem
from sandbox_core.testing.queue_harness import BOUND_SECONDS, Gate, everyone, item, take_all
from tests.contracts.test_queue_redis import Join, all_done, blocked, join, only_tokens_wake
from tests.redis_server import RedisServer

__all__ = ["join", "only_tokens_wake"]

GPU = frozenset({"gpu"})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.usefixtures("only_tokens_wake")
class TestWakes:
    @pytest.mark.parametrize("first", ["plain", "gpu"])
    async def test_a_token_goes_to_a_process_that_can_take_it(
        self, join: Join, redis_server: RedisServer, first: str
    ) -> None:
        front, plain, with_gpu = await join(), await join(), await join()
        gate = Gate()
        taken: list[QueueItem] = []

        async def take() -> None:
            taken.append((await with_gpu.take(everyone, GPU)).item)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for number, kind in enumerate(sorted(["plain", "gpu"], key=lambda kind: kind != first)):
                    if kind == "plain":
                        tasks.start_soon(plain.take, gate)
                    else:
                        tasks.start_soon(take)
                    await blocked(redis_server, number + 1)
                await front.put(put := item("a", None, "gpu"))
                while not taken:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert taken == [put]
        assert not gate.asked

    async def test_many_takers_of_three_kinds_get_everything_without_looking_by_themselves(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        front = await join(max_depth=500)
        kinds: list[frozenset[str]] = [frozenset(), GPU, frozenset({"gpu", "large"})]
        queues = [await join() for _ in kinds]
        needs: list[tuple[str, ...]] = [(), ("gpu",), ("gpu", "large"), ("large",)]
        puts = [item(f"p{n % 5}", f"s{n % 3}", *needs[n % 4]) for n in range(120)]
        taken: list[QueueItem] = []

        async def work(queue: RedisQueue, offers: frozenset[str], tasks: anyio.abc.TaskGroup) -> None:
            while True:
                delivery = await queue.take(everyone, offers)
                assert offers.issuperset(delivery.item.labels)
                taken.append(delivery.item)
                await queue.done(delivery)
                if len(taken) == len(puts):
                    tasks.cancel_scope.cancel()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for queue, offers in zip(queues, kinds, strict=True):
                    tasks.start_soon(work, queue, offers, tasks)
                await blocked(redis_server, 3)
                for put in puts:
                    await front.put(put)
        assert sorted(put.execution_id for put in taken) == sorted(put.execution_id for put in puts)

    async def test_what_needs_labels_costs_idle_takers_without_them_nothing(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        front, plain = await join(), await join()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(plain.take, everyone)
            await blocked(redis_server)
            woken = redis_server.commands()["blpop"]
            for _ in range(MAX_TOKENS + 5):
                await front.put(item("a", None, "gpu"))
            await take_all(front, 3, "gpu")
            await all_done(redis_server)
            before = redis_server.commands()
            await anyio.sleep(1)
            spent = redis_server.commands() - before
            tasks.cancel_scope.cancel()
        spent.pop("info", None)
        assert spent.total() == 0, spent
        assert redis_server.commands()["blpop"] == woken

    async def test_who_takes_something_with_labels_wakes_those_for_whom_it_was_woken(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        both, plain, taken = await join(visibility_seconds=60), await join(), list[QueueItem]()

        async def wait() -> None:
            taken.append((await plain.take(everyone)).item)

        def eat() -> None:
            redis_server.ask("BLPOP", "one:queue:wake", BOUND_SECONDS)

        await both.put(with_labels := item("a", None, "gpu"))
        held = await both.take(everyone, GPU)
        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, eat)
                await blocked(redis_server)
                tasks.start_soon(wait)
                await blocked(redis_server, 2)
                await both.put(put := item("b"))
                await both.give_back(held)
                assert (await both.take(everyone, GPU)).item == with_labels
                while not taken:
                    await anyio.lowlevel.checkpoint()
        assert taken == [put]


@pytest.mark.anyio
async def test_what_waits_with_a_dead_taker_waits_for_another_with_its_labels(join: Join) -> None:
    async with AsyncExitStack() as life:
        dying = await join(visibility_seconds=0.6, stack=life)
        await dying.put(put := item("a", None, "gpu"))
        with anyio.fail_after(BOUND_SECONDS):
            assert (await dying.take(everyone, GPU)).item == put
    plain, other = await join(visibility_seconds=0.6), await join(visibility_seconds=0.6)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(plain.take, everyone)  # it finds what came back, and may not take it
        with anyio.fail_after(BOUND_SECONDS):
            assert (await other.take(everyone, GPU)).item == put
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_every_key_expires_and_labels_leave_nothing_behind(join: Join, redis_server: RedisServer) -> None:
    queue = await join()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.take, everyone, frozenset({"arm64"}))
        await blocked(redis_server)
        for number in range(20):
            await queue.put(item(f"p{number % 5}", f"s{number}", *(("gpu",), ("gpu", "large"))[number % 2]))
        with anyio.fail_after(BOUND_SECONDS):
            held = await queue.take(everyone, frozenset({"gpu", "large"}))
        for key in redis_server.ask("KEYS", "*"):
            assert redis_server.ask("PTTL", key) > 0, key
        await queue.give_back(held)
        assert len(await take_all(queue, 20, "gpu", "large")) == 20
        await all_done(redis_server)
        tasks.cancel_scope.cancel()
    left = set(redis_server.ask("KEYS", "*"))
    assert left == {b"one:queue:state", b"one:queue:turns", b"one:queue:kinds"}


@pytest.mark.anyio
async def test_without_labels_there_is_no_key_of_labels(join: Join, redis_server: RedisServer) -> None:
    queue = await join()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.take, Gate("a"))
        for number in range(4):
            await queue.put(item("a", f"s{number}"))
        await blocked(redis_server)
        names = {key.removeprefix(b"one:queue:") for key in redis_server.ask("KEYS", "*")}
        tasks.cancel_scope.cancel()
    assert b"ring" in names
    of_labels = (b"sets", b"kinds", b"ring:", b"wake:")
    assert not [name for name in names if name.startswith(of_labels) or name.count(b"|") > 1]


@pytest.mark.anyio
async def test_different_sets_of_labels_are_bounded(join: Join) -> None:
    queue = await join(max_depth=1000)
    for number in range(MAX_SETS):
        await queue.put(item("a", None, f"l{number}"))
    with pytest.raises(ServerFull, match="sets of labels"):
        await queue.put(item("b", None, "one-more"))
    await queue.put(item("b", None, "l0"))
    await queue.put(item("b"))
    with anyio.fail_after(BOUND_SECONDS):
        assert len(await take_all(queue, 3, "l0")) == 3
    await queue.put(item("b", None, "one-more"))


@pytest.mark.anyio
async def test_kinds_of_takers_are_bounded_and_one_more_still_takes(join: Join, redis_server: RedisServer) -> None:
    until = int(redis_server.ask("TIME")[0]) * 1000 + 60_000
    for number in range(MAX_KINDS):
        redis_server.ask("HSET", "one:queue:kinds", f"k{number}", until)
    front, one_more = await join(), await join()
    async with anyio.create_task_group() as tasks:
        taken: list[QueueItem] = []

        async def take() -> None:
            taken.append((await one_more.take(everyone, GPU)).item)

        tasks.start_soon(take)
        await blocked(redis_server)
        assert redis_server.ask("HLEN", "one:queue:kinds") == MAX_KINDS
        await front.put(put := item("a", None, "gpu"))
        with anyio.fail_after(60):
            while not taken:  # noqa: ASYNC110  # it looks by itself
                await anyio.sleep(0.05)
    assert taken == [put]


@given(
    labels=st.frozensets(st.sampled_from(["a", "b-1", "c.d", "0_x"]), max_size=4),
    session=st.none() | st.text("ab|,=:%", min_size=1, max_size=5),
)
def test_an_item_with_labels_is_read_as_it_was_written(labels: frozenset[str], session: str | None) -> None:
    put = item("p|,:", session, *labels)
    lane, _, raw = encode_item(put).partition(" ")
    assert lane == lane_of(put)
    assert decode_item(raw.encode(), put.execution_id.encode(), lane.encode()) == put
    with pytest.raises(StoredDataCorrupt):
        decode_item(raw.encode(), put.execution_id.encode(), lane.encode() + b"|zz")


@pytest.mark.parametrize("labels", ['["b","a"]', '["A"]', '"a"', "{}", "[1]", "null"])
def test_labels_that_are_none_are_corrupt(labels: str) -> None:
    put = item("a", None, "gpu")
    lane, _, raw = encode_item(put).partition(" ")
    with pytest.raises(StoredDataCorrupt):
        decode_item(raw.replace('["gpu"]', labels).encode(), put.execution_id.encode(), lane.encode())
