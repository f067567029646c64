"""Executions per second: eight clients that each run `true` over HTTP one after another."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import anyio

from benchmarks.report import Row, main, median, time_bare_bwrap, time_true
from examples.serving import Server, serve

CLIENTS = 8
EACH = 75
ROUNDS = 3
TARGET = 120.0


async def measure() -> list[Row]:
    """Alternate rounds of bare bwrap (eight threads) and of eight clients; report the median round."""
    baseline, subject = [], []
    async with serve(environment={"SANDBOX_MAX_PER_SESSION": str(CLIENTS)}) as server:
        for _ in range(ROUNDS):
            baseline.append(_bare_rate())
            subject.append(await _rate(server))
    ours, bare = median(subject), median(baseline)
    return [
        Row(
            f"executions per second, {CLIENTS} clients, {os.cpu_count()} cores",
            f"{ours:.0f}/s",
            f"bare bwrap, {CLIENTS} threads, {bare:.0f}/s",
            f"at least {TARGET:.0f}/s",
            ours >= TARGET,
        )
    ]


def _bare_rate() -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda _: time_bare_bwrap(), range(CLIENTS * EACH)))
    return CLIENTS * EACH / (time.perf_counter() - begun)


async def _rate(server: Server) -> float:
    ready = anyio.Semaphore(0)
    go = anyio.Event()

    async def one() -> None:
        async with server.client() as client:
            await time_true(client)
            ready.release()
            await go.wait()
            for _ in range(EACH):
                await time_true(client)

    async with anyio.create_task_group() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(one)
        for _ in range(CLIENTS):
            await ready.acquire()
        begun = time.perf_counter()
        go.set()
    return CLIENTS * EACH / (time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main(measure))
