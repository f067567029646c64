"""What `make demo-workers` shows: servers that run nothing, workers, and that killing some of them breaks no promise.

A real Redis, two servers behind a real nginx without affinity, three workers. A real MCP client keeps them busy while
one worker and one server are killed; then a checker goes through everything that was accepted. Ends with a non-zero
code when it finds a fault.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from rich.console import Console

from examples.fleet import Fleet, Program, fleet, missing_programs
from examples.serving import is_gone
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.testing.history import History, Verdict, judge

EXECUTIONS = 60
AT_ONCE = 6
KILL_WORKER_AFTER, KILL_SERVER_AFTER = 20, 40
"""How many executions are accepted when one is killed."""

PROGRAM = "echo {number} >> {witness}; for i in 1 2 3 4; do echo line $i of {number}; sleep 0.25; done"
LEASE_SECONDS = 3.0
TRY_FOR_SECONDS = 60.0
WAIT_SECONDS = 5.0

PROMISES = (
    "each program began at most once",
    "each execution has exactly one terminal event, and it is the last",
    "its events are numbered 1, 2, 3 … without holes",
    "none is forgotten, none is there that nobody asked for, and the counts match",
)

console = Console(markup=False, highlight=False, soft_wrap=True)
Reply = dict[str, Any]


class Workload:
    """What the client does, and what it must be told in the end.

    Every program writes its number to a file of the host, so that how often each began is known from outside.
    """

    def __init__(self, client: Client, witness: Path) -> None:
        self._client = client
        self._witness = witness
        self._changed = anyio.Event()
        self.ids: dict[int, str] = {}
        self.retried = 0

    async def call(self, tool: str, **arguments: Any) -> Reply:
        """Call a tool; again, for a while, when the server on the way died with the answer."""
        with anyio.fail_after(TRY_FOR_SECONDS):
            while True:
                try:
                    return await self._once(tool, arguments)
                except MCPError:
                    self.retried += 1
                    await anyio.sleep(0.1)

    async def submit(self, numbers: AsyncIterator[int]) -> None:
        """Start one execution after the other. Asking again with the same key starts nothing twice."""
        async for number in numbers:
            reply = await self.call(
                "execute_code_async",
                command=PROGRAM.format(number=number, witness=self._witness),
                sandbox_config={"filesystem": {"allow_write": [str(self._witness)]}},
                idempotency_key=f"demo-{number}",
            )
            self.ids[number] = reply["execution_id"]
            self._changed.set()
            self._changed = anyio.Event()

    async def _once(self, tool: str, arguments: Reply) -> Reply:
        result = await self._client.call_tool(tool, arguments)
        if result.is_error:
            raise RuntimeError(f"{tool}: {result.content}")
        return result.structured_content or {}

    async def until_accepted(self, count: int) -> None:
        """Return when so many were accepted."""
        while len(self.ids) < count:
            await self._changed.wait()

    async def history(self, execution_id: str) -> History:
        """Wait for the end of an execution, and read its whole log page by page."""
        status = "pending"
        while status in {"pending", "running"}:
            page = await self.call(
                "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=WAIT_SECONDS
            )
            status = page["status"]
        events, after, more = [], "0", True
        while more:
            page = await self.call("get_execution_output", execution_id=execution_id, last_event_id=after)
            events += [(int(event["event_id"]), EventKind(event["type"])) for event in page["output"]]
            after, more = page["last_event_id"], page["has_more"]
        return History(execution_id, ExecutionStatus(page["status"]), page["termination_reason"], tuple(events))

    async def stored_ids(self) -> list[str]:
        """Return the id of every execution that is stored."""
        found: list[str] = []
        before: Reply = {}
        while True:
            page = await self.call("list_executions", limit=50, **before)
            found += [entry["execution_id"] for entry in page["executions"]]
            if page["next_before"] is None:
                return found
            before = {"before": page["next_before"]}

    def starts(self) -> Counter[str]:
        """Return how often each program began, from the file that they wrote to."""
        return Counter(self.ids[int(line)] for line in self._witness.read_text().split())


async def show(mine: Fleet, witness: Path) -> Verdict:
    """Run the workload, kill, wait for every end, and judge."""
    async with (
        httpx2.AsyncClient(timeout=httpx2.Timeout(60.0)) as http,
        Client(streamable_http_client(mine.url, http_client=http)) as client,
    ):
        console.print(f"connected through nginx: protocol {client.protocol_version}")
        work = Workload(client, witness)
        console.print(f"\n1. {EXECUTIONS} programs, {AT_ONCE} submitted at once", style="bold")
        send, receive = anyio.create_memory_object_stream[int](EXECUTIONS)
        for number in range(EXECUTIONS):
            send.send_nowait(number)
        send.close()
        orphans: frozenset[int] = frozenset()
        async with anyio.create_task_group() as tasks, receive:
            for _ in range(AT_ONCE):
                tasks.start_soon(work.submit, receive.clone())
            await work.until_accepted(KILL_WORKER_AFTER)
            victim = await _busiest(mine.workers)
            orphans |= await _kill(victim, len(work.ids))
            await work.until_accepted(KILL_SERVER_AFTER)
            await _kill(mine.servers[0], len(work.ids))
        console.print(f"     all {len(work.ids)} are accepted; calls made again after an error: {work.retried}")
        console.print("\n2. Wait for every end, through the server that is left", style="bold")
        histories = [await work.history(execution_id) for execution_id in await work.stored_ids()]
        left = [pid for pid in orphans if not is_gone(pid)]
        console.print(f"     of the {len(orphans)} processes of {victim.name} there are {len(left)} left")
        verdict = judge(list(work.ids.values()), histories, starts=work.starts())
    faults = (*verdict.faults, *(f"process {pid} outlived {victim.name}" for pid in left))
    return Verdict(verdict.submitted, verdict.events, verdict.ended, verdict.started, faults)


def tell(verdict: Verdict) -> None:
    """Print the checker's verdict."""
    console.print("\n3. The checker's verdict", style="bold")
    console.print(f"     accepted {verdict.submitted}, programs that began {verdict.started}, events {verdict.events}")
    for reason, count in verdict.ended.items():
        meaning = "ran in the killed worker when it died" if reason == "lost" else "ended by itself"
        console.print(f"     {count:4} {reason:10} {meaning}")
    for fault in verdict.faults:
        console.print(f"     FAULT: {fault}", style="bold red")
    for promise in () if verdict.faults else PROMISES:
        console.print(f"     holds: {promise}", style="green")


async def _busiest(workers: list[Program]) -> Program:
    """Return the worker that runs most, as soon as one runs something."""
    while True:
        counts = [int(str((await worker.health() or {}).get("running", 0))) for worker in workers]
        if max(counts):
            return workers[counts.index(max(counts))]
        await anyio.sleep(0.02)


async def _kill(program: Program, accepted: int) -> frozenset[int]:
    told = await program.health() or {}
    runs = f", which runs {told['running']}" if told.get("running") else ""
    console.print(
        f"     {accepted} accepted; SIGKILL to {program.name} (process {program.process.pid}{runs})", style="yellow"
    )
    return await program.kill()


@asynccontextmanager
async def _until_signal() -> AsyncIterator[anyio.CancelScope]:
    """Cancel what is inside on Ctrl-C or SIGTERM; how everything is ended is not cut short."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def obey() -> None:
                async for _ in signals:
                    console.print("\nStopping.", style="bold")
                    scope.cancel()

            tasks.start_soon(obey)
            with anyio.CancelScope() as scope:
                yield scope
            tasks.cancel_scope.cancel()


def _flat(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    found: list[Exception] = []
    for error in group.exceptions:
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def main() -> int:
    """Return the exit code."""
    if packages := missing_programs():
        console.print(f"This demo needs {' and '.join(packages)}. As root: apt-get install {' '.join(packages)}")
        return 1
    begun = time.monotonic()
    verdict: Verdict | None = None
    # A sandbox has a /tmp of its own, so what it is granted of the host's is elsewhere.
    with tempfile.TemporaryDirectory(prefix="sandbox-demo-", dir="/var/tmp") as base:
        async with _until_signal() as scope:
            witness = Path(base) / "began"
            witness.touch()
            granted = {"filesystem": {"allow_write": [str(witness)]}}
            variables = {
                "SANDBOX_CEILING": json.dumps(granted),
                "SANDBOX_LEASE_SECONDS": str(LEASE_SECONDS),
                "SANDBOX_MAX_PER_SESSION": "100",
                "SANDBOX_DRAIN_GRACE_SECONDS": "0",
                "SANDBOX_KILL_GRACE_SECONDS": "1",
            }
            async with fleet(Path(base), variables=variables) as mine:
                for program in mine.programs:
                    console.print(f"{program.name:9} on 127.0.0.1:{program.port}, process {program.process.pid}")
                verdict = await show(mine, witness)
        if scope.cancelled_caught or verdict is None:
            console.print("Stopped before the verdict; nothing is left running.", style="bold red")
            return 1
        tell(verdict)
    seconds = time.monotonic() - begun
    if verdict.faults:
        console.print(f"\n{len(verdict.faults)} FAULTS, in {seconds:.1f} s.", style="bold red")
        return 1
    console.print(f"\nA worker and a server were killed, and every promise holds. {seconds:.1f} s.", style="bold green")
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = anyio.run(main)
    except* (RuntimeError, TimeoutError) as group:
        console.print(f"\nNOT AS EXPECTED: {'; '.join(str(error) for error in _flat(group))}", style="bold red")
    sys.exit(code)
