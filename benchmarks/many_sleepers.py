"""500 sleeping executions at once: memory of each with all its processes, and how fast `true` still is beside them."""

from __future__ import annotations

import sys

import anyio
import httpx2

from benchmarks.report import MIB, Row, call, main, median, milliseconds, proportional_bytes, time_true
from examples.serving import Server, descendants, serve

SLEEPERS = 500
CALLS = 60
MEMORY_TARGET = 2 * MIB
SLOWDOWN_TARGET = 3.0
LIMITS = {
    "SANDBOX_MAX_CONCURRENT": "600",
    "SANDBOX_MAX_PER_SESSION": "600",
    "SANDBOX_MAX_QUEUED": "1000",
    "SANDBOX_TIMEOUT": "900",
    "SANDBOX_DRAIN_GRACE_SECONDS": "0",
}


async def measure() -> list[Row]:
    """Measure `true` idle, start the sleepers, and measure again."""
    async with serve(environment=LIMITS) as server, server.client() as client:
        for _ in range(10):
            await time_true(client)
        idle = median([await time_true(client) for _ in range(CALLS)])
        empty, idle_processes = _total(server), len(descendants(server.pid))
        for _ in range(SLEEPERS):
            await call(client, "execute_code_async", command="sleep 800", timeout_seconds=850)
        async with httpx2.AsyncClient() as http:
            with anyio.fail_after(120):
                while await _running(http, server) < SLEEPERS:  # noqa: ASYNC110  # another process's state
                    await anyio.sleep(0.2)
        full, processes = _total(server), len(descendants(server.pid))
        busy = median([await time_true(client) for _ in range(CALLS)])
    each = (full - empty) / SLEEPERS
    return [
        Row(
            f"proportional memory of each of {SLEEPERS} sleeping executions",
            f"{each / MIB:.2f} MiB ({(processes - idle_processes) / SLEEPERS:.1f} processes each)",
            f"idle server {empty / MIB:.0f} MiB",
            "under 2 MiB",
            each < MEMORY_TARGET,
        ),
        Row(
            f"`true` beside {SLEEPERS} sleeping executions, p50 of {CALLS}",
            f"{milliseconds(busy)} ({busy / idle:.2f} x)",
            f"idle {milliseconds(idle)}",
            f"within {SLOWDOWN_TARGET:.0f} x",
            busy <= SLOWDOWN_TARGET * idle,
        ),
    ]


async def _running(http: httpx2.AsyncClient, server: Server) -> int:
    return int((await http.get(f"{server.url}/health")).json()["running"])


def _total(server: Server) -> int:
    return sum(proportional_bytes(pid) for pid in (server.pid, *descendants(server.pid)))


if __name__ == "__main__":
    sys.exit(main(measure))
