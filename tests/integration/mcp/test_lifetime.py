"""What happens to an execution when the call that waits for it is cancelled or its connection drops."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from sandbox_mcp.progress import INTERVAL_SECONDS
from tests.integration.mcp.harness import (
    ACCEPT,
    MODES,
    PATIENCE_SECONDS,
    Served,
    call,
    connected,
    modern_headers,
    older_session,
    processes_with,
    refusal,
    tool_request,
    until,
)

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def marked(script: str = "read go; echo done") -> tuple[str, dict[str, Any]]:
    """Return a mark, and arguments for a program that shows it in the process table, by default until `let_go`."""
    mark = f"mark-{uuid.uuid4().hex}"
    return mark, {"command": ["sh", "-c", script, mark], "interactive": True}


async def raw_post(server: Served, headers: dict[str, str], body: dict[str, Any]) -> SocketStream:
    """Send a request on a connection of its own and return the connection, answer unread."""
    data = json.dumps(body).encode()
    lines = [f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    stream = await anyio.connect_tcp("127.0.0.1", server.port)
    await stream.send("".join(lines).encode() + b"\r\n" + data)
    return stream


async def drop(stream: SocketStream) -> None:
    """End a connection; returns when the server has noticed and closed its side."""
    await stream.send_eof()
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError), anyio.fail_after(PATIENCE_SECONDS):
        while True:
            await stream.receive()
    await stream.aclose()


async def let_go(server: Served, session: str) -> None:
    """Let the one program of a session end, which runs until then."""
    async with connected(server.url) as client:
        (entry,) = (await call(client, "list_executions", session_id=session))["executions"]
        assert entry["status"] == "running"
        await call(client, "send_stdin", execution_id=entry["execution_id"], input_data="", end=True)


async def final_status(server: Served, session: str) -> str:
    """Return the status in which the one execution of a session ends, once it is there."""
    async with connected(server.url) as client:

        async def ended() -> str | None:
            for entry in (await call(client, "list_executions", session_id=session))["executions"]:
                if entry["status"] not in {"pending", "running"}:
                    return str(entry["status"])
            return None

        return str(await until(ended, "the execution ends"))


async def start_and_drop(
    server: Served, era: str, on_disconnect: str | None, key: str | None = None, accept: str = ACCEPT
) -> tuple[str, dict[str, Any]]:
    """Start a waited execution, drop its connection once it runs; return its mark, and what was asked."""
    mark, asked = marked()
    arguments: dict[str, Any] = {**asked, "session_id": f"drop-{mark[-12:]}", "idempotency_key": key}
    if on_disconnect is not None:
        arguments["on_disconnect"] = on_disconnect
    body = tool_request("execute_code", arguments)
    if era == "modern":
        headers = {**modern_headers("tools/call", "execute_code"), "Accept": accept}
    else:
        del body["params"]["_meta"]
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
            headers = await older_session(http, server.url, accept)
    stream = await raw_post(server, headers, body)
    await until(lambda: processes_with(mark), "the program runs")
    await drop(stream)
    return mark, arguments


@pytest.mark.parametrize("accept", [ACCEPT, "application/json"], ids=["any", "json"])
@pytest.mark.parametrize(
    ("era", "on_disconnect", "status"),
    [
        ("modern", None, "cancelled"),
        ("modern", "cancel", "cancelled"),
        ("modern", "detach", "completed"),
        ("older", None, "completed"),
        ("older", "detach", "completed"),
        ("older", "cancel", "cancelled"),
    ],
)
async def test_dropped_connection_of_a_waited_call(
    server: Served, era: str, on_disconnect: str | None, status: str, accept: str
) -> None:
    mark, asked = await start_and_drop(server, era, on_disconnect, accept=accept)
    if status == "completed":
        await let_go(server, asked["session_id"])
    assert await final_status(server, asked["session_id"]) == status
    assert processes_with(mark) == []


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_a_client_that_comes_back_with_its_key_finds_the_execution_it_started(server: Served, era: str) -> None:
    key = f"key-{uuid.uuid4()}"
    _, asked = await start_and_drop(server, era, None, key)
    session = asked.pop("session_id")
    async with connected(server.url) as client:
        found = await call(client, "execute_code", **asked, yield_seconds=0.05)
        assert found["status"] == "running"
        await call(client, "send_stdin", execution_id=found["execution_id"], input_data="", end=True)
        said = await call(client, "execute_code", **asked)
        assert (said["status"], said["stdout"]) == ("completed", "done\n")
        (entry,) = (await call(client, "list_executions", session_id=session))["executions"]
        assert entry["execution_id"] == said["execution_id"] == found["execution_id"]
        other = await refusal(client, "execute_code", command="true", idempotency_key=key)
        assert other["code"] == "idempotency_conflict"
        assert said["execution_id"] in other["message"]


@pytest.mark.parametrize(("on_disconnect", "status"), [(None, "cancelled"), ("detach", "completed")])
async def test_cancelled_notification_of_an_older_client(
    server: Served, on_disconnect: str | None, status: str
) -> None:
    mark, asked = marked()
    session = f"notify-{mark[-12:]}"
    arguments: dict[str, Any] = {**asked, "session_id": session}
    if on_disconnect is not None:
        arguments["on_disconnect"] = on_disconnect
    body = tool_request("execute_code", arguments, request_id=7)
    del body["params"]["_meta"]
    async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        headers = await older_session(http, server.url)
        stream = await raw_post(server, headers, body)
        await until(lambda: processes_with(mark), "the program runs")
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert (await http.post(server.url, json=notice, headers=headers)).status_code == 202
        if status == "completed":
            await let_go(server, session)
        assert await final_status(server, session) == status
        await stream.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_cancelled_client_call_ends_the_program(server: Served, mode: str) -> None:
    mark, asked = marked()
    session = f"cancelled-{mark[-12:]}"
    async with connected(server.url, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "execute_code", {**asked, "session_id": session})
            await until(lambda: processes_with(mark), "the program runs")
            tasks.cancel_scope.cancel()
        await until(lambda: not processes_with(mark), "the program is gone")
        assert await final_status(server, session) == "cancelled"
        # The SDK's client breaks when it is left while an answer that nobody waits for comes in.
        await client.call_tool("list_executions", {})


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_async_start_is_untouched_by_its_connection(server: Served, era: str) -> None:
    mark, asked = marked()
    session = f"async-{mark[-12:]}"
    body = tool_request("execute_code_async", {**asked, "session_id": session})
    async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        headers = modern_headers("tools/call", "execute_code_async")
        if era == "older":
            del body["params"]["_meta"]
            headers = await older_session(http, server.url)
        stream = await raw_post(server, headers, body)
        await until(lambda: processes_with(mark), "the program runs")
        await drop(stream)
        if era == "older":
            assert (await http.delete(server.url, headers=headers)).status_code == 200
    await let_go(server, session)
    assert await final_status(server, session) == "completed"


@pytest.mark.parametrize("mode", MODES)
async def test_progress_brings_the_newest_output_and_grows(server: Served, mode: str) -> None:
    script = """
        echo part 1; read go
        for i in 1 2 3 4 5 6 7 8 9 10; do echo tick; sleep 0.1; done
        echo part 2; read go
        head -c 9000 /dev/zero | tr '\\0' z"""
    told: list[tuple[float, str]] = []
    session = f"progress-{uuid.uuid4().hex[:12]}"

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        told.append((progress, message or ""))

    def is_told(part: str) -> bool:
        return any(part in message for _, message in told)

    async def go_on() -> None:
        for part in ("part 1", "part 2"):
            await until(partial(is_told, part), f"{part} is told")
            (entry,) = (await call(client, "list_executions", session_id=session))["executions"]
            await call(client, "send_stdin", execution_id=entry["execution_id"], input_data="go\n")

    async with connected(server.url, mode) as client:
        begun = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            asked = {"command": script, "interactive": True, "session_id": session}
            result = await client.call_tool("execute_code", asked, progress_callback=listen)
        lasted_seconds = time.monotonic() - begun
    assert not result.is_error
    assert [number for number, _ in told] == sorted({number for number, _ in told})
    assert 2 <= len(told) <= 1 + lasted_seconds / INTERVAL_SECONDS
    assert all(len(message.encode()) <= 2048 for _, message in told)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fill", ["x", "\\001"])
async def test_streamed_answer_fits_what_clients_take(server: Served, mode: str, fill: str) -> None:
    async def listen(progress: float, total: float | None, message: str | None) -> None:
        del progress, total, message

    command = f"echo first; sleep 0.7; head -c 3000000 /dev/zero | tr '\\0' '{fill}'"
    async with connected(server.url, mode) as client:
        result = await client.call_tool(
            "execute_code", {"command": command, "max_bytes": 8 << 20}, progress_callback=listen
        )
        assert isinstance(result.structured_content, dict)
        assert result.structured_content["truncation"]["omitted_bytes"] > 1_500_000
        identity = {"execution_id": result.structured_content["execution_id"]}
        page = await call(client, "get_execution_output", **identity, max_bytes=8 << 20, include_events=False)
    assert len(page["stdout"]) == 3_000_006


async def test_client_that_does_not_read_never_slows_the_run(server: Served) -> None:
    session = f"slow-{uuid.uuid4().hex[:12]}"
    arguments = {"command": "for i in $(seq 300); do head -c 20000 /dev/zero | tr '\\0' x; done", "session_id": session}
    body = tool_request("execute_code", {**arguments, "max_bytes": 8 << 20, "include_events": True})
    body["params"]["_meta"]["progressToken"] = "token"
    stream = await raw_post(server, modern_headers("tools/call", "execute_code"), body)
    assert await final_status(server, session) == "completed"
    await stream.aclose()


async def test_two_requests_with_one_id_in_one_older_session_are_kept_apart(server: Served) -> None:
    async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        headers = await older_session(http, server.url)

        def body(**arguments: Any) -> dict[str, Any]:
            request = tool_request("execute_code", arguments, request_id=5)
            del request["params"]["_meta"]
            return request

        mark, asked = marked("read go; echo first")
        session = f"twice-{mark[-12:]}"
        answers: list[httpx2.Response] = []

        async def first() -> None:
            answers.append(await http.post(server.url, json=body(**asked, session_id=session), headers=headers))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await until(lambda: processes_with(mark), "the first runs")
            second = await http.post(server.url, json=body(command="echo second"), headers=headers)
            await let_go(server, session)
        assert second.status_code == 409
        assert "first" in answers[0].text
        third = await http.post(server.url, json=body(command="echo third"), headers=headers)
        assert "third" in third.text
