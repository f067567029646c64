"""What a fleet costs Redis: measured for an execution, one that goes on running, and an idle worker; then extrapolated.

Prints Markdown for docs/scaling.md: `python -m benchmarks.scaling | python scripts/record_benchmarks.py`. Servers and
workers are `open_sandbox` with the settings of each, in this process; what runs is scripted. Redis sees the same as of
real ones, and nothing but the numbers of Redis is read.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import anyio

from benchmarks.redis_costs import Cost, RedisMeter
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.testing.scripted_runner import Pause, Script, ScriptedRunner
from tests.redis_server import RedisServer, running_redis

IDLE_WORKERS: Final = 50
SETTLE_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30.0
EXECUTIONS: Final = 400
AT_ONCE: Final = 8
OUTPUT_BYTES: Final = 256 * 1024
RUNNING_WORKERS: Final = 10
RUNNING_SECONDS: Final = 30.0
LONGER_SECONDS: Final = 3600.0

SLOTS: Final = 10
"""Slots of one worker, the default."""

FLEETS: Final = (10, 50, 200, 1000)
DURATIONS: Final = (1, 10, 60, 600)
"""How long an execution takes, seconds."""

BUSY: Final = 0.7
"""The share of its one thread that a Redis should be asked for at most: beyond it, waits grow fast."""


async def idle_cost(redis: RedisServer, *, seconds: float = IDLE_SECONDS, settle: float = SETTLE_SECONDS) -> Cost:
    """Return what IDLE_WORKERS idle workers cost Redis."""
    async with AsyncExitStack() as workers:
        for _ in range(IDLE_WORKERS):
            await workers.enter_async_context(_worker(redis, "idle"))
        await anyio.sleep(settle)
        meter = RedisMeter(redis)
        await anyio.sleep(seconds)
        return meter.read()


async def execution_cost(redis: RedisServer, *, output_bytes: int = 0, count: int = EXECUTIONS) -> Cost:
    """Return what one execution costs Redis from submission to the result, AT_ONCE of them at a time."""
    prefix = f"one{output_bytes}"
    script = Script(stdout=b"x" * output_bytes)
    async with _worker(redis, prefix, script), _server(redis, prefix) as server:
        await _run(server, 4 * AT_ONCE)
        meter = RedisMeter(redis)
        await _run(server, count)
        return meter.read().per(count)


async def running_cost(redis: RedisServer, *, seconds: float = RUNNING_SECONDS, settle: float = SETTLE_SECONDS) -> Cost:
    """Return what it costs Redis in one second that one execution more goes on running, in workers with SLOTS of them.

    One slot stays free, so that each worker asks for more as the idle one does, whose cost is taken off.
    """
    count = RUNNING_WORKERS * SLOTS
    limits = {"max_concurrent": SLOTS + 1, "max_per_session": count, "timeout": 2 * LONGER_SECONDS}
    script = Script(steps=[Pause(LONGER_SECONDS)])
    async with AsyncExitStack() as opened:
        workers = [
            await opened.enter_async_context(_worker(redis, "run", script, **limits)) for _ in range(RUNNING_WORKERS)
        ]
        server = await opened.enter_async_context(_server(redis, "run", **limits))
        await anyio.sleep(settle)
        meter = RedisMeter(redis)
        await anyio.sleep(seconds)
        idle = meter.read()
        for _ in range(count):
            await server.submit("work", timeout_seconds=LONGER_SECONDS)
        while sum(worker.supervisor.running for worker in workers) < count:  # noqa: ASYNC110  # counts tell nobody
            await anyio.sleep(0.05)
        await anyio.sleep(settle)
        meter = RedisMeter(redis)
        await anyio.sleep(seconds)
        cost = meter.read()
        for worker in workers:
            worker.hurry()
    return cost.less_idle(idle).per(count * cost.seconds)


def tables(execution: Cost, of_output: Cost, idle_worker: Cost, running: Cost) -> str:
    """Return what was measured, and what follows from it.

    Args:
        execution: one that prints nothing and ends at once.
        of_output: one that prints OUTPUT_BYTES.
        idle_worker: one worker for one second.
        running: one execution that goes on for one second.
    """
    mib = OUTPUT_BYTES / (1 << 20)
    extra = of_output.less(execution)
    formula = (
        f"Load of Redis = *N* · *w* + *N* · {SLOTS} · (*r* + *e* / *d*), for *N* workers of {SLOTS} slots, all busy "
        "with executions that take *d* seconds. Processor time is a share of Redis's one thread."
    )
    lines = [
        "| measured | round trips | commands, those in scripts too | to Redis | from Redis | processor time of Redis |",
        "| --- | --- | --- | --- | --- | --- |",
        _measured("*e*: an execution without output, through the queue", execution, 1),
        _measured("*o*: each MiB of output, stored and read once", extra, mib),
        _measured("*w*: an idle worker, each second", idle_worker, 1),
        _measured("*r*: an execution that goes on running, each second", running, 1),
        "",
        formula,
        "",
        "| workers | executions take | executions/s | round trips/s | network | processor time | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for workers in FLEETS:
        for seconds in DURATIONS:
            rate = workers * SLOTS / seconds
            busy = running.per(1 / (workers * SLOTS)).plus(execution.per(1 / rate))
            load = idle_worker.per(1 / workers).plus(busy)
            said = "" if load.processor_seconds <= BUSY else "over one Redis"
            network = f"{load.bytes / (1 << 20):.1f} MiB/s"
            share = f"{load.processor_seconds:.0%}"
            lines.append(
                f"| {workers} | {seconds} s | {rate:.0f} | {load.round_trips:.0f} | {network} | {share} | {said} |"
            )
    lines += ["", _limits(execution, idle_worker, running)]
    return "\n".join(lines)


def _limits(execution: Cost, idle_worker: Cost, running: Cost) -> str:
    rate, idle = BUSY / execution.processor_seconds, BUSY / idle_worker.processor_seconds
    left = BUSY - 1000 * (idle_worker.processor_seconds + SLOTS * running.processor_seconds)
    seconds = 1000 * SLOTS * execution.processor_seconds / left if left > 0 else float("inf")
    most = BUSY / running.processor_seconds
    return (
        f"One Redis that is asked for {BUSY:.0%} of its thread: {BUSY:g} / *e* = **{rate:.0f} executions a second**, "
        f"or {BUSY:g} / *w* = {idle:.0f} workers that do nothing, or {BUSY:g} / *r* = {most:.0f} executions that only "
        f"go on running. 1,000 workers with every slot busy stay below that when an execution takes {seconds:.0f} s "
        "or more on average."
    )


def _measured(what: str, cost: Cost, count: float) -> str:
    one = cost.per(count)
    commands = f"{one.commands:.0f}" if one.commands >= 10 else f"{one.commands:.1f}"
    return (
        f"| {what} | {one.round_trips:.1f} | {commands} | {one.received_bytes / 1024:.1f} KiB | "
        f"{one.sent_bytes / 1024:.1f} KiB | {one.processor_seconds * 1e6:.0f} µs |"
    )


async def _run(server: Sandbox, count: int) -> None:
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            await server.run("work")

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(some)


@asynccontextmanager
async def _worker(
    redis: RedisServer, prefix: str, script: Script | None = None, **fields: Any
) -> AsyncIterator[Sandbox]:
    runner = ScriptedRunner({"work": script or Script()})
    async with open_sandbox(_settings(redis, prefix, **fields), runner=runner) as worker:
        yield worker


@asynccontextmanager
async def _server(redis: RedisServer, prefix: str, **fields: Any) -> AsyncIterator[Sandbox]:
    async with open_sandbox(_settings(redis, prefix, local_runner=False, **fields)) as server:
        yield server


def _settings(redis: RedisServer, prefix: str, **fields: Any) -> Settings:
    own = {"redis_url": redis.url, "queue_url": redis.url, "redis_prefix": prefix, "log_file": ""}
    return Settings.model_validate({**own, **fields})


async def measure() -> str:
    """Measure, and return the tables."""
    with running_redis("--appendfsync", "everysec") as redis:
        execution = await execution_cost(redis)
        of_output = await execution_cost(redis, output_bytes=OUTPUT_BYTES, count=EXECUTIONS // 4)
        idle = await idle_cost(redis)
        running = await running_cost(redis)
    return tables(execution, of_output, idle.per(IDLE_WORKERS * idle.seconds), running)


if __name__ == "__main__":
    print(anyio.run(measure))
    sys.exit(0)
