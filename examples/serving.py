"""Start a real `sandbox serve` on a free loopback port and stop it again, for the demo, the benchmarks and tests."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

START_SECONDS = 60.0
STOP_SECONDS = 30.0
SANDBOX = Path(sys.executable).with_name("sandbox")
_PORTS = range(30_000, 32_768)
_tried = itertools.count(secrets.randbelow(len(_PORTS)))


@dataclass(slots=True)
class Server:
    """A running server. `directory` is its temporary directory; its log is `server.log` beside it."""

    url: str
    token: str
    process: anyio.abc.Process
    directory: Path
    log: Path
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": f"Bearer {self.token}"}

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    @asynccontextmanager
    async def client(self, mode: str = "auto") -> AsyncIterator[Client]:
        """Connect the SDK's client over Streamable HTTP with the token. `legacy` speaks the older protocol."""
        async with (
            httpx2.AsyncClient(headers=self.headers, timeout=httpx2.Timeout(300.0)) as http,
            Client(streamable_http_client(f"{self.url}/mcp", http_client=http), mode=mode) as client,
        ):
            yield client

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code. Raises TimeoutError when it does not end."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(STOP_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def serve(*arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Server]:
    """Run `sandbox serve` with a random token while the context lasts.

    `arguments` follow `sandbox serve --port N`; `environment` is added to this process's own. Raises RuntimeError with
    the server's log when it does not come up.
    """
    port, token = free_port(), secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="sandbox-example-") as base:
        directory, log = Path(base) / "tmp", Path(base) / "server.log"
        directory.mkdir()
        own = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        own |= {"SANDBOX_AUTH_TOKEN": token, "SANDBOX_LOG_FILE": str(log), "TMPDIR": str(directory)}
        argv: Sequence[str] = (str(SANDBOX), "serve", "--host", "127.0.0.1", "--port", str(port), *arguments)
        with (Path(base) / "stderr.txt").open("wb") as errors:
            process = await anyio.open_process(
                argv, stdin=-3, stdout=errors, stderr=errors, cwd=base, env=own | dict(environment or {})
            )
            server = Server(f"http://127.0.0.1:{port}", token, process, directory, log)
            try:
                await _until_healthy(server, Path(errors.name))
                yield server
            finally:
                with anyio.CancelScope(shield=True):
                    try:
                        await server.stop()
                    except TimeoutError:
                        process.kill()
                        await process.wait()


def free_port(ports: range = _PORTS) -> int:
    """Return a loopback port of these that nobody listens on, and no second time for long. Raises OSError.

    Give none that the kernel gives to connections (ip(7), ip_local_port_range): one of those would be gone again
    before the server that is told of it has started, or is back on it.
    """
    for _ in ports:
        port = ports[next(_tried) % len(ports)]
        with socket.socket() as probe:
            # As servers do it: what an earlier connection left there for a minute is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")


def descendants(pid: int) -> frozenset[int]:
    """Return the ids of every process below `pid`, as the host sees them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    stack = [pid]
    while stack:
        for child in children.get(stack.pop(), []):
            if child not in found:
                found.add(child)
                stack.append(child)
    return frozenset(found)


def is_gone(pid: int) -> bool:
    """Return whether no program runs under this process id; one that only waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:  # noqa: PTH123  # one short read
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


async def _until_healthy(server: Server, errors: Path) -> None:
    async with httpx2.AsyncClient(timeout=2.0) as http:
        with anyio.move_on_after(START_SECONDS):
            while server.process.returncode is None:
                try:
                    if (await http.get(f"{server.url}/health")).status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                await anyio.sleep(0.05)
    said = await anyio.Path(errors).read_text(errors="replace")
    raise RuntimeError(f"sandbox serve did not come up:\n{said}")
