"""A real `sandbox serve` in a process of its own, and clients for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess  # noqa: TID251  # the server under test is a program
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult

from tests.ports import free_port

PATIENCE_SECONDS = 45.0
"""For what must happen; shorter than any grace or wait that a test sees not to be waited for."""

MODES: tuple[str, ...] = ("auto", "legacy")
"""2026-07-28, and the newest older era."""

ACCEPT = "application/json, text/event-stream"
TOOLS = {
    "execute_code",
    "execute_code_async",
    "get_execution_output",
    "get_execution_status",
    "list_executions",
    "send_stdin",
    "cancel_execution",
    "get_capabilities",
}
NO_TLS = False
"""`verify` of clients that speak plain HTTP: else each of them reads all authorities, 30 ms of processor time."""


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def health(self) -> httpx2.Response:
        return httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=PATIENCE_SECONDS, verify=NO_TLS)

    def running(self) -> int:
        return int(self.health().json()["running"])

    def stop(self) -> int:
        """Ask it to stop as an operator would; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_SECONDS)


@contextmanager
def serving(directory: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    """Start a server on a free port with only these `SANDBOX_` variables; kill it at the end if it still runs."""
    port = free_port()
    log = directory / f"server-{port}.log"
    process = start_sandbox(directory, ["serve", "--port", str(port), *arguments], log, **variables)
    try:
        served = Served(process, port, log)
        eventually(lambda: _answers(served), f"the server answers; its log: {log.read_text()}")
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_sandbox(directory: Path, arguments: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start `sandbox` with these arguments; what it prints is appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sandbox_program(), *arguments],
            env=environment(**variables),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def environment(**variables: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SANDBOX_", "REDIS_"))}
    quick = {"SANDBOX_LOG_FILE": "", "SANDBOX_DRAIN_GRACE_SECONDS": "0", "SANDBOX_KILL_GRACE_SECONDS": "1"}
    return {**inherited, **quick, **variables}


def sandbox_program() -> str:
    return str(Path(sys.executable).with_name("sandbox"))


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Return the condition's first true value; fail when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


async def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """As `eventually`, in the event loop."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if hasattr(value, "__await__"):
            value = await value
        if value:
            return value
        await anyio.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


@asynccontextmanager
async def connected(url: str, mode: str = "auto", token: str | None = None) -> AsyncIterator[Client]:
    """Yield the SDK's client over real HTTP."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(120), verify=NO_TLS) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the structured content of a call that must succeed."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return structured(result)


async def refusal(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the error of a call that must be refused."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    error = structured(result)["error"]
    assert error["message"] in text(result)
    assert isinstance(error, dict)
    return error


def structured(result: CallToolResult) -> dict[str, Any]:
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def text(result: CallToolResult) -> str:
    (block,) = result.content
    assert block.type == "text"
    return block.text


def modern_request(method: str, params: Mapping[str, Any], request_id: int = 1) -> dict[str, Any]:
    """A 2026-07-28 request as it goes over the wire."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {**params, "_meta": meta}}


def modern_headers(method: str, name: str | None = None) -> dict[str, str]:
    headers = {"Accept": ACCEPT, "Content-Type": "application/json", "MCP-Protocol-Version": "2026-07-28"}
    headers["Mcp-Method"] = method
    if name is not None:
        headers["Mcp-Name"] = name
    return headers


def tool_request(tool: str, arguments: Mapping[str, Any], request_id: int = 1) -> dict[str, Any]:
    return modern_request("tools/call", {"name": tool, "arguments": dict(arguments)}, request_id)


async def older_session(http: httpx2.AsyncClient, url: str, accept: str = ACCEPT) -> dict[str, str]:
    """Open an older session by hand; return the headers that its requests need."""
    headers = {"Accept": accept, "Content-Type": "application/json"}
    hello = {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    opened = await http.post(url, json=hello, headers=headers)
    assert opened.status_code == 200, opened.text
    headers |= {"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
    ready = await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
    assert ready.status_code == 202
    return headers


def sse_messages(body: str) -> list[dict[str, Any]]:
    """Return the JSON-RPC messages of a whole event stream."""
    lines = body.replace("\r\n", "\n").split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line[6:].strip()]


def processes_with(mark: str) -> list[int]:
    """Return the processes that have `mark` as one of their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in arguments:
                found.append(int(entry.name))
    return found


def _answers(served: Served) -> bool:
    assert served.process.poll() is None, served.log.read_text()
    try:
        return served.health().status_code == 200
    except httpx2.HTTPError:
        return False
