"""What state in Redis costs beside state in memory: latency, output, waiting over replicas, long logs, long lists."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from pydantic import SecretStr

from benchmarks.bulk_output import PRINTED, read_all
from benchmarks.report import MIB, Row, call, main, median, milliseconds, time_true
from examples.serving import Server, serve
from sandbox_adapters.clock import SystemClock
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, SessionId
from sandbox_core.ports.store import Claim, ListQuery
from sandbox_core.testing.samples import NODE, cancelled, pending, printed
from tests.redis_server import RedisServer, running_redis

ROUNDS = 200
WARM_UP = 20
BULK_ROUNDS = 3
LISTED = 10_000
PAGE = 50
SESSION = SessionId("bench")
_CLOCK = SystemClock()


async def measure() -> list[Row]:
    """Take memory and Redis in turn, so that a noisy moment hits both."""
    with running_redis("--appendfsync", "everysec") as redis:
        async with serve() as memory, serve(environment={"REDIS_URL": redis.url}) as shared:
            rows = await _latency(memory, shared, redis)
            rows.append(await _bulk(memory, shared))
        async with _store(redis) as one, _store(redis) as two:
            rows.append(await _waiting(one, two))
            rows.append(await _tail(one))
            rows.append(await _listing(one))
    return rows


async def _latency(memory: Server, shared: Server, redis: RedisServer) -> list[Row]:
    in_memory, in_redis = [], []
    async with memory.client() as first, shared.client() as second:
        for _ in range(WARM_UP):
            await time_true(first)
            await time_true(second)
        before = redis.commands()
        for _ in range(ROUNDS):
            in_memory.append(await time_true(first))
            in_redis.append(await time_true(second))
        used = redis.commands() - before
    base, ours = median(in_memory), median(in_redis)
    trips = (used["evalsha"] + used["eval"]) / ROUNDS
    every = sum(count for name, count in used.items() if name not in ("evalsha", "eval", "info")) / ROUNDS
    return [
        Row(
            f'`execute_code("true")` over HTTP with Redis, p50 of {ROUNDS}',
            f"{milliseconds(ours)} ({ours / base:.2f} x)",
            f"in memory {milliseconds(base)}",
            "at most 1.3 x",
            ours <= 1.3 * base,
        ),
        Row(
            "round trips to Redis for one such execution",
            f"{trips:.1f} scripts, {every:.0f} commands inside them",
            "",
            "at most 8",
            trips <= 8,
        ),
    ]


async def _bulk(memory: Server, shared: Server) -> Row:
    rates: dict[str, list[float]] = {memory.url: [], shared.url: []}
    for _ in range(BULK_ROUNDS):
        for server in (memory, shared):
            async with server.client() as client:
                await call(client, "execute_code", command="true")
                rates[server.url].append((await read_all(server, client))[0])
    base, ours = median(rates[memory.url]), median(rates[shared.url])
    return Row(
        f"{PRINTED // MIB} MiB printed and read in pages, with Redis",
        f"{ours:.0f} MiB/s ({ours / base:.2f} x)",
        f"in memory {base:.0f} MiB/s",
        "at least 0.5 x",
        ours >= 0.5 * base,
    )


async def _waiting(owner: RedisStateStore, reader: RedisStateStore) -> Row:
    claim = await _claimed(owner)
    took: list[float] = []
    for number in range(ROUNDS):
        async with anyio.create_task_group() as tasks:
            waiting = anyio.Event()

            async def wait(after: int = number, waiting: anyio.Event = waiting) -> None:
                waiting.set()
                await reader.wait(claim.lease.execution_id, after=after)
                took.append(time.perf_counter())

            tasks.start_soon(wait)
            await waiting.wait()
            await anyio.sleep(0.002)
            took.append(-time.perf_counter())
            await owner.append(claim.lease, [printed(_CLOCK, b"a line\n")])
    latencies = [took[index] + took[index + 1] for index in range(0, len(took), 2)]
    return Row(
        f"from an append to a waiter on another replica, p50 of {ROUNDS}",
        milliseconds(median(latencies)),
        "",
        "under 10 ms",
        median(latencies) < 0.010,
    )


async def _tail(store: RedisStateStore) -> Row:
    long, short = await _logged(store, 50_000), await _logged(store, 100)
    took: dict[ExecutionId, list[float]] = {long: [], short: []}
    for _ in range(ROUNDS):
        for execution_id, length in ((long, 50_000), (short, 100)):
            begun = time.perf_counter()
            page = await store.read(execution_id, after=length - 20)
            took[execution_id].append(time.perf_counter() - begun)
            if len(page.events) != 20:
                raise RuntimeError("the tail is not whole")
    base, ours = median(took[short]), median(took[long])
    return Row(
        f"last 20 of 50000 events from Redis, p50 of {ROUNDS}",
        f"{milliseconds(ours)} ({ours / base:.2f} x)",
        f"last 20 of 100 events {milliseconds(base)}",
        "under 1.3 x",
        ours < 1.3 * base,
    )


async def _listing(store: RedisStateStore) -> Row:
    first = await _first_page(store, PAGE)
    await _finish_many(store, LISTED - PAGE)
    ours = await _first_page(store, LISTED)
    return Row(
        f"a page of {PAGE} of {LISTED} finished executions of a session, p50 of {ROUNDS}",
        f"{milliseconds(ours)} ({ours / first:.2f} x)",
        f"of {PAGE} {milliseconds(first)}",
        "under 1.5 x",
        ours < 1.5 * first,
    )


async def _first_page(store: RedisStateStore, count: int) -> float:
    if count == PAGE:
        await _finish_many(store, PAGE)
    took = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        page = await store.list_page(ListQuery(LOCAL_PRINCIPAL, SESSION, limit=PAGE))
        took.append(time.perf_counter() - begun)
        if len(page.executions) != PAGE:
            raise RuntimeError("the page is not full")
    return median(took)


async def _finish_many(store: RedisStateStore, count: int) -> None:
    async def some(number: int) -> None:
        for _ in range(number):
            execution = await store.create(pending(_CLOCK, session_id=SESSION))
            await store.finish_unclaimed(cancelled(execution, _CLOCK), [])

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(some, count // 10)


async def _claimed(store: RedisStateStore) -> Claim:
    execution = await store.create(pending(_CLOCK))
    return await store.claim(execution.id, NODE, lease_seconds=600)


async def _logged(store: RedisStateStore, length: int) -> ExecutionId:
    claim = await _claimed(store)
    for start in range(0, length, 100):
        await store.append(
            claim.lease, [printed(_CLOCK, b"line %d\n" % number) for number in range(start, start + 100)]
        )
    return claim.lease.execution_id


@asynccontextmanager
async def _store(redis: RedisServer) -> AsyncIterator[RedisStateStore]:
    options = RedisOptions(url=SecretStr(redis.url), timeout_seconds=10)
    async with RedisConnection(options) as connection, RedisStateStore(connection) as store:
        yield store


if __name__ == "__main__":
    sys.exit(main(measure))
