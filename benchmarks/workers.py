"""What the queue and separate workers cost beside a server that runs by itself, both with state in Redis.

Latency and rate; commands and bytes that Redis has for one execution, and commands for a fleet that does nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
from mcp import Client
from pydantic import SecretStr

from benchmarks.redis_costs import Cost, RedisMeter
from benchmarks.report import Row, call, main, median, milliseconds, time_true
from benchmarks.scaling import IDLE_WORKERS, idle_cost
from benchmarks.throughput import CLIENTS, rate
from examples.fleet import Fleet
from examples.serving import SANDBOX, Server, free_port, serve
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.domain.events import EventKind
from tests.redis_server import RedisServer, running_redis

ROUNDS = 100
WARM_UP = 10
WORKERS = 4
EACH = 40
RATE_ROUNDS = 3
COUNTED = 100
SETTLE_SECONDS = 10.0
FIRST = "echo first; sleep 0.1"
ONE_WORKER = "queued1"
_LIMITS = {"SANDBOX_MAX_PER_SESSION": "100"}


async def measure() -> list[Row]:
    """Take both in turn, so that a noisy moment hits both."""
    with running_redis("--appendfsync", "everysec") as redis:
        rows = []
        async with _both(redis, workers=1) as (alone, queued):
            rows.append(await _first_output(alone, queued))
            rows.append(await _first_event(redis))
            rows += await _costs(alone, queued, redis)
        async with _both(redis, workers=WORKERS) as (alone, queued):
            rows.append(await _rates(alone, queued))
        rows.append(await _idle(redis))
    return rows


async def _first_output(alone: Server, queued: Server) -> Row:
    took: dict[str, list[float]] = {alone.url: [], queued.url: []}
    async with alone.client() as first, queued.client() as second:
        clients = ((alone.url, first), (queued.url, second))
        for number in range(WARM_UP + ROUNDS):
            for url, client in clients:
                seconds = await _time_first_output(client)
                if number >= WARM_UP:
                    took[url].append(seconds)
    base, ours = median(took[alone.url]), median(took[queued.url])
    return Row(
        f"from submit to the first output through the queue, over HTTP, p50 of {ROUNDS}",
        f"{milliseconds(ours)} ({ours / base:.2f} x)",
        f"the server runs it, state in Redis, {milliseconds(base)}",
        "at most 1.5 x",
        ours <= 1.5 * base,
    )


async def _time_first_output(client: Client) -> float:
    begun = time.perf_counter()
    execution_id = (await call(client, "execute_code_async", command=FIRST))["execution_id"]
    last, printed = "0", ""
    while not printed:
        said = await call(
            client, "get_execution_output", execution_id=execution_id, last_event_id=last, wait_seconds=30
        )
        last, printed = said["last_event_id"], said["stdout"]
    took = time.perf_counter() - begun
    await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=30)
    return took


async def _first_event(redis: RedisServer) -> Row:
    """As `_first_output`, without HTTP: the service is in this process, which hides nothing of the queue."""
    url, took = redis.url, {True: list[float](), False: list[float]()}
    alone = Settings.model_validate({"redis_url": url, "redis_prefix": "alone-here", "log_file": ""})
    queued = alone.model_copy(update={"queue_url": SecretStr(url), "redis_prefix": ONE_WORKER, "local_runner": False})
    async with open_sandbox(alone) as first, open_sandbox(queued) as second:
        for number in range(WARM_UP + ROUNDS):
            for sandbox in (first, second):
                seconds = await _time_first_event(sandbox)
                if number >= WARM_UP:
                    took[sandbox is first].append(seconds)
    base, ours = median(took[True]), median(took[False])
    return Row(
        f"the same without HTTP, p50 of {ROUNDS}",
        f"{milliseconds(ours)} ({ours / base:.2f} x)",
        f"it runs here, state in Redis, {milliseconds(base)}",
        "at most 1.5 x",
        ours <= 1.5 * base,
    )


async def _time_first_event(sandbox: Sandbox) -> float:
    begun, took = time.perf_counter(), 0.0
    async with aclosing(sandbox.stream(FIRST)) as events:
        async for event in events:
            if event.kind is EventKind.STDOUT and not took:
                took = time.perf_counter() - begun
    return took


async def _costs(alone: Server, queued: Server, redis: RedisServer) -> list[Row]:
    costs: list[Cost] = []
    for server in (alone, queued):
        async with server.client() as client:
            for _ in range(WARM_UP):
                await time_true(client)
            meter = RedisMeter(redis)
            for _ in range(COUNTED):
                await time_true(client)
            costs.append(meter.read().less_idle(await _idle_of(redis)).per(COUNTED))
    base, ours = costs
    return [
        Row(
            'what one `execute_code("true")` through the queue costs Redis, beyond what it costs idle',
            ours.words,
            f"the server runs it: {base.words}",
            "",
            passed=True,
        )
    ]


async def _idle_of(redis: RedisServer) -> Cost:
    meter = RedisMeter(redis)
    await anyio.sleep(SETTLE_SECONDS)
    return meter.read()


async def _rates(alone: Server, queued: Server) -> Row:
    rates: dict[str, list[float]] = {alone.url: [], queued.url: []}
    for _ in range(RATE_ROUNDS):
        for server in (alone, queued):
            rates[server.url].append(await rate(server.client, time_true, EACH))
    base, ours = median(rates[alone.url]), median(rates[queued.url])
    return Row(
        f"executions per second through {WORKERS} workers, {CLIENTS} clients, {os.cpu_count()} cores",
        f"{ours:.0f}/s ({ours / base:.2f} x)",
        f"the server runs them, state in Redis, {base:.0f}/s",
        "at least 0.9 x",
        ours >= 0.9 * base,
    )


async def _idle(redis: RedisServer) -> Row:
    cost = await idle_cost(redis)
    each = cost.per(cost.seconds)
    return Row(
        f"commands a second of {IDLE_WORKERS} idle workers, those inside scripts too",
        f"{each.commands:.0f}/s ({each.round_trips:.0f} round trips/s, {each.bytes / 1024:.1f} KiB/s)",
        "",
        "under 150/s",
        each.commands < 150,
    )


@asynccontextmanager
async def _both(redis: RedisServer, *, workers: int) -> AsyncIterator[tuple[Server, Server]]:
    """Run a server that runs what it accepts, and one with workers. Each has its own keys in the same Redis."""
    with tempfile.TemporaryDirectory(prefix="sandbox-workers-") as directory:
        alone = {"REDIS_URL": redis.url, "SANDBOX_REDIS_PREFIX": "alone", **_LIMITS}
        queued = {
            "REDIS_URL": redis.url,
            "SANDBOX_QUEUE_URL": redis.url,
            "SANDBOX_REDIS_PREFIX": ONE_WORKER if workers == 1 else f"queued{workers}",
            **_LIMITS,
        }
        fleet = Fleet(Path(directory))
        async with serve(environment=alone) as first, serve("--no-local-runner", environment=queued) as second:
            try:
                for number in range(workers):
                    await _add_worker(fleet, number, queued)
                await fleet.until_healthy(fleet.workers)
                yield first, second
            finally:
                with anyio.CancelScope(shield=True):
                    await fleet.stop()


async def _add_worker(fleet: Fleet, number: int, variables: Mapping[str, str]) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("SANDBOX_", "REDIS_"))}
    port = free_port()
    argv = [SANDBOX, "worker", "--port", str(port)]
    fleet.workers.append(
        await fleet.start(f"worker {number}", argv, port, plain | {"SANDBOX_LOG_FILE": ""} | dict(variables))
    )


if __name__ == "__main__":
    sys.exit(main(measure))
