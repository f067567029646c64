"""How fast a command starts, from a spare and cold, beside bare bwrap and the protocol alone; what spares cost idle."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from mcp import Client

from benchmarks import sdk_floor
from benchmarks.report import MIB, Row, main, median, milliseconds, proportional_bytes, time_bare_bwrap, time_true
from examples.serving import descendants, free_port, serve

ROUNDS = 200
PAUSE_SECONDS = 0.05
"""Between two commands, so that a spare was built and the machine is quiet, as between an agent's calls."""
SPARE_TARGET, COLD_TARGET = 0.75, 2.5
IDLE_TARGET = 32 * MIB
NO_SPARES = {"SANDBOX_SPARES": "0"}


async def measure() -> list[Row]:
    """Take the four in turn, so that a noisy moment hits all."""
    names = ("bare", "floor", "spare", "cold")
    times: dict[str, list[float]] = {name: [] for name in names}
    async with (
        serve() as usual,
        serve(environment=NO_SPARES) as without,
        sdk_alone() as floor,
        usual.client() as from_spare,
        without.client() as cold,
    ):
        for _ in range(10):
            await time_true(from_spare)
            await time_true(cold)
        await anyio.sleep(1)
        idle = sum(map(proportional_bytes, descendants(usual.pid)))
        for _ in range(ROUNDS):
            times["bare"].append(time_bare_bwrap())
            await anyio.sleep(PAUSE_SECONDS)
            times["floor"].append(await time_constant(floor))
            await anyio.sleep(PAUSE_SECONDS)
            times["spare"].append(await time_true(from_spare))
            await anyio.sleep(PAUSE_SECONDS)
            times["cold"].append(await time_true(cold))
            await anyio.sleep(PAUSE_SECONDS)
    bare, protocol = median(times["bare"]), median(times["floor"])
    return [
        *(
            Row(
                f'`execute_code("true")` over HTTP, {how}, p50 of {ROUNDS}, one each {PAUSE_SECONDS * 4:g} s',
                f"{milliseconds(ours)} ({ours / bare:.2f} x)",
                f"bare bwrap {milliseconds(bare)}; a constant from the SDK's own server {milliseconds(protocol)}",
                f"at most {target} x",
                ours <= target * bare,
            )
            for how, ours, target in (
                ("from a spare", median(times["spare"]), SPARE_TARGET),
                ("cold", median(times["cold"]), COLD_TARGET),
            )
        ),
        Row(
            "proportional memory of all that waits in an idle server: launcher, its children, spares",
            f"{idle / MIB:.1f} MiB",
            "none",
            "under 32 MiB",
            idle < IDLE_TARGET,
        ),
    ]


@asynccontextmanager
async def sdk_alone() -> AsyncIterator[Client]:
    """Run the SDK's own server and connect its client."""
    async with sdk_server() as url, Client(url) as client:
        yield client


@asynccontextmanager
async def sdk_server() -> AsyncIterator[str]:
    """Run the SDK's own server and yield its URL."""
    port = free_port()
    async with await anyio.open_process(
        [sys.executable, "-m", sdk_floor.__name__, str(port)], stdin=-3, stdout=-3, stderr=None
    ) as process:
        try:
            await _until_open(port)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


async def _until_open(port: int) -> None:
    with anyio.fail_after(30):
        while True:
            try:
                async with await anyio.connect_tcp("127.0.0.1", port):
                    return
            except OSError:
                await anyio.sleep(0.05)


async def time_constant(client: Client) -> float:
    """Call the constant and return the seconds until the reply."""
    begun = time.perf_counter()
    await client.call_tool(sdk_floor.TOOL, {})
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main(measure))
