"""64 MiB printed by one command and read by a client in pages: speed, the server's memory, and that nothing is lost."""

from __future__ import annotations

import subprocess  # noqa: TID251  # the baseline is a plain subprocess, on purpose
import sys
import time
from typing import Any

from mcp import Client

from benchmarks.report import MIB, Row, bare_bwrap, call, forget_peak, main, median, resident_bytes
from examples.serving import Server, serve

PRINTED = 64 * MIB
PAGE = 8 * MIB
ROUNDS = 3
SPEED_TARGET = 80.0
MEMORY_TARGET = 64 * MIB
PRINT = f"yes 'a line of output as a build would print it, again and again' | head -c {PRINTED}"


async def measure() -> list[Row]:
    """Read everything with a raised cap, read what the default cap keeps, and one long line."""
    speeds, bare, growths = [], [], []
    async with serve() as server, server.client() as client:
        await call(client, "execute_code", command="true")
        for _ in range(ROUNDS):
            bare.append(_bare_speed())
            speed, growth = await read_all(server, client)
            speeds.append(speed)
            growths.append(growth)
        truncated, truncated_growth = await _truncated(server, client)
        line = await call(client, "execute_code", command=f"head -c {MIB} /dev/zero | tr '\\0' x", max_bytes=2 * MIB)
    speed, growth = median(speeds), max(growths)
    kept, dropped = truncated["usage"]["stdout_bytes"], truncated["usage"]["dropped_bytes"]
    return [
        Row(
            "64 MiB printed by one command, read by a client in pages",
            f"{speed:.0f} MiB/s",
            f"pipe of bare bwrap {median(bare):.0f} MiB/s",
            f"at least {SPEED_TARGET:.0f} MiB/s",
            speed >= SPEED_TARGET,
        ),
        Row(
            "growth of the server's memory meanwhile, cap raised",
            f"{growth / MIB:.0f} MiB",
            "64 MiB printed",
            "under 64 MiB",
            growth < MEMORY_TARGET,
        ),
        Row(
            "growth of the server's memory, default cap (truncates)",
            f"{truncated_growth / MIB:.0f} MiB; {dropped / MIB:.0f} MiB dropped and said so",
            f"{kept / MIB:.0f} MiB printed",
            "under 64 MiB",
            truncated_growth < MEMORY_TARGET and dropped > 0 and kept == PRINTED,
        ),
        Row(
            "one line of 1 MiB without a newline",
            f"{len(line['stdout'])} bytes arrived",
            f"{MIB} bytes printed",
            "whole",
            line["stdout"] == "x" * MIB,
        ),
    ]


def _bare_speed() -> float:
    begun = time.perf_counter()
    argv = bare_bwrap("/bin/sh", "-c", PRINT)
    total = 0
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while data := process.stdout.read(64 * 1024):
            total += len(data)
    if total != PRINTED:
        raise RuntimeError(f"the baseline read {total} bytes")
    return PRINTED / MIB / (time.perf_counter() - begun)


async def read_all(server: Server, client: Client) -> tuple[float, int]:
    forget_peak(server.pid)
    before = resident_bytes(server.pid)
    begun = time.perf_counter()
    started = await call(client, "execute_code_async", command=PRINT, sandbox_config={"max_output_bytes": 2 * PRINTED})
    total, cursor = 0, "0"
    while True:
        page = await _page(client, started["execution_id"], cursor)
        total += len(page["stdout"])
        if page["last_event_id"] == cursor and page["status"] not in {"pending", "running"}:
            break
        cursor = page["last_event_id"]
    took = time.perf_counter() - begun
    if total != PRINTED:
        raise RuntimeError(f"{total} of {PRINTED} bytes arrived")
    return PRINTED / MIB / took, resident_bytes(server.pid, peak=True) - before


async def _page(client: Client, execution_id: str, cursor: str) -> dict[str, Any]:
    return await call(
        client,
        "get_execution_output",
        execution_id=execution_id,
        last_event_id=cursor,
        max_bytes=PAGE,
        wait_seconds=10,
        include_events=False,
        include_text=False,
    )


async def _truncated(server: Server, client: Client) -> tuple[dict[str, Any], int]:
    forget_peak(server.pid)
    before = resident_bytes(server.pid)
    reply = await call(client, "execute_code", command=PRINT)
    return reply, resident_bytes(server.pid, peak=True) - before


if __name__ == "__main__":
    sys.exit(main(measure))
