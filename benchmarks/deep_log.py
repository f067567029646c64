"""Reading the last events of a long log beside a short one: through the service on the memory store, and over MCP."""

from __future__ import annotations

import sys
import time

import anyio
from mcp import Client

from benchmarks.report import Row, call, main, median
from examples.serving import serve
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.scripted_runner import Print, Script, ScriptedRunner

SHORT, LONG = 100, 50_000
LAST = 20
ROUNDS = 300
TARGET = 1.3


async def measure() -> list[Row]:
    """Read the same number of last events of both, in turn."""
    return [await _through_service(), await _over_mcp()]


async def _through_service() -> Row:
    scripts = {str(count): Script(steps=_alternating(count)) for count in (SHORT, LONG)}
    short, long = [], []
    async with open_sandbox(Settings(), runner=ScriptedRunner(scripts)) as sandbox:
        ids = {count: (await sandbox.run(str(count))).execution_id for count in (SHORT, LONG)}
        last = {count: await _last_event(sandbox, ids[count]) for count in ids}
        if last[LONG] < LONG or last[SHORT] > 2 * SHORT:
            raise RuntimeError(f"the logs have {last} events")
        for _ in range(ROUNDS):
            short.append(await _time_service(sandbox, ids[SHORT], last[SHORT]))
            long.append(await _time_service(sandbox, ids[LONG], last[LONG]))
    return _row("through the service", last[SHORT], last[LONG], short, long)


def _alternating(events: int) -> list[Print]:
    """Prints that cannot be merged into one event: the stream changes each time."""
    return [Print(b"line %d\n" % number, Stream.STDOUT if number % 2 else Stream.STDERR) for number in range(events)]


async def _last_event(sandbox: Sandbox, execution_id: ExecutionId) -> int:
    return (await sandbox.service.read_ends(sandbox.principal, execution_id, max_bytes=1)).last_seq


async def _time_service(sandbox: Sandbox, execution_id: ExecutionId, last: int) -> float:
    begun = time.perf_counter()
    page = await sandbox.service.read(sandbox.principal, execution_id, after=last - LAST)
    took = time.perf_counter() - begun
    if len(page.events) != LAST:
        raise RuntimeError(f"{len(page.events)} events instead of {LAST}")
    return took


async def _over_mcp() -> Row:
    short, long = [], []
    async with serve() as server, server.client() as client:
        small = await _printed(client, SHORT)
        large = await _printed(client, LONG)
        for _ in range(ROUNDS):
            short.append(await _time_mcp(client, *small))
            long.append(await _time_mcp(client, *large))
    return _row("over MCP", small[1], large[1], short, long)


async def _printed(client: Client, events: int) -> tuple[str, int]:
    """Let a program print on both streams in turn until its log has so many events; return its id and the last one."""
    program = "i=0; while :; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    if events == SHORT:
        program = f"for i in $(seq {SHORT // 2}); do echo out $i; sleep 0.01; echo err $i >&2; sleep 0.01; done"
    config = {"max_output_bytes": 256 * 1024 * 1024, "timeout_seconds": 300}
    started = await call(client, "execute_code_async", command=program, sandbox_config=config)
    execution_id = str(started["execution_id"])
    with anyio.fail_after(280):
        while True:
            status = await call(client, "get_execution_status", execution_id=execution_id)
            if status["status"] not in {"pending", "running"}:
                break
            if int(status["last_event_id"]) >= events and events != SHORT:
                await call(client, "cancel_execution", execution_id=execution_id, force=True)
            await anyio.sleep(0.2)
    return execution_id, int(status["last_event_id"])


async def _time_mcp(client: Client, execution_id: str, last: int) -> float:
    begun = time.perf_counter()
    page = await call(client, "get_execution_output", execution_id=execution_id, last_event_id=str(last - LAST))
    took = time.perf_counter() - begun
    if len(page["output"]) != LAST:
        raise RuntimeError(f"{len(page['output'])} events instead of {LAST}")
    return took


def _row(how: str, few: int, many: int, short: list[float], long: list[float]) -> Row:
    ratio = median(long) / median(short)
    return Row(
        f"last {LAST} of {many} events, {how}, p50 of {ROUNDS}",
        f"{median(long) * 1e6:.0f} µs ({ratio:.2f} x)",
        f"last {LAST} of {few} events {median(short) * 1e6:.0f} µs",
        f"under {TARGET} x",
        ratio < TARGET,
    )


if __name__ == "__main__":
    sys.exit(main(measure))
