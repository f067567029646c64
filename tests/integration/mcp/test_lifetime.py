"""What happens to an execution when the call that waits for it is cancelled or its connection drops."""

from __future__ import annotations

import json
import uuid
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from tests.integration.mcp.harness import (
    MODES,
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


def marked_sleep(seconds: float = 3) -> tuple[str, list[str]]:
    """Return a mark, and a command that shows it in the process table while it runs."""
    mark = f"mark-{uuid.uuid4().hex}"
    return mark, ["sh", "-c", f"sleep {seconds}; echo done", mark]


async def raw_post(server: Served, headers: dict[str, str], body: dict[str, Any]) -> SocketStream:
    """Send a request on a connection of its own and return the connection, answer unread."""
    data = json.dumps(body).encode()
    lines = [f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    stream = await anyio.connect_tcp("127.0.0.1", server.port)
    await stream.send("".join(lines).encode() + b"\r\n" + data)
    return stream


async def final_status(server: Served, session: str) -> str:
    """Return the status in which the one execution of a session ends."""
    async with connected(server.url) as client:

        async def ended() -> str | None:
            (entry,) = (await call(client, "list_executions", session_id=session))["executions"]
            return None if entry["status"] in {"pending", "running"} else str(entry["status"])

        return str(await until(ended, "the execution ends"))


def lasting_until(status: str) -> float:
    """How long a program runs: what is to be cancelled does not end before that on a busy machine."""
    return 60 if status == "cancelled" else 1.5


async def start_and_drop(
    server: Served, era: str, on_disconnect: str | None, seconds: float, key: str | None = None
) -> tuple[str, str]:
    """Start a waited execution, drop its connection once it runs; return its session and mark."""
    mark, command = marked_sleep(seconds)
    session = f"drop-{mark[-12:]}"
    arguments: dict[str, Any] = {"command": command, "session_id": session, "idempotency_key": key}
    if on_disconnect is not None:
        arguments["on_disconnect"] = on_disconnect
    body = tool_request("execute_code", arguments)
    if era == "modern":
        headers = modern_headers("tools/call", "execute_code")
    else:
        del body["params"]["_meta"]
        async with httpx2.AsyncClient() as http:
            headers = await older_session(http, server.url)
    stream = await raw_post(server, headers, body)
    await until(lambda: processes_with(mark), "the program runs")
    await stream.aclose()
    return session, mark


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
    server: Served, era: str, on_disconnect: str | None, status: str
) -> None:
    session, mark = await start_and_drop(server, era, on_disconnect, lasting_until(status))
    assert await final_status(server, session) == status
    assert processes_with(mark) == []


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_a_client_that_comes_back_with_its_key_finds_the_execution_it_started(server: Served, era: str) -> None:
    key = f"key-{uuid.uuid4()}"
    session, mark = await start_and_drop(server, era, None, 1.5, key)
    async with connected(server.url) as client:
        command = ["sh", "-c", "sleep 1.5; echo done", mark]
        said = await call(client, "execute_code", command=command, idempotency_key=key)
        assert (said["status"], said["stdout"]) == ("completed", "done\n")
        (entry,) = (await call(client, "list_executions", session_id=session))["executions"]
        assert entry["execution_id"] == said["execution_id"]
        other = await refusal(client, "execute_code", command="true", idempotency_key=key)
        assert other["code"] == "idempotency_conflict"
        assert said["execution_id"] in other["message"]


@pytest.mark.parametrize(("on_disconnect", "status"), [(None, "cancelled"), ("detach", "completed")])
async def test_cancelled_notification_of_an_older_client(
    server: Served, on_disconnect: str | None, status: str
) -> None:
    mark, command = marked_sleep(lasting_until(status))
    session = f"notify-{mark[-12:]}"
    arguments: dict[str, Any] = {"command": command, "session_id": session}
    if on_disconnect is not None:
        arguments["on_disconnect"] = on_disconnect
    body = tool_request("execute_code", arguments, request_id=7)
    del body["params"]["_meta"]
    async with httpx2.AsyncClient() as http:
        headers = await older_session(http, server.url)
        stream = await raw_post(server, headers, body)
        await until(lambda: processes_with(mark), "the program runs")
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert (await http.post(server.url, json=notice, headers=headers)).status_code == 202
        assert await final_status(server, session) == status
        await stream.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_cancelled_client_call_ends_the_program(server: Served, mode: str) -> None:
    mark, command = marked_sleep(30)
    session = f"cancelled-{mark[-12:]}"
    async with connected(server.url, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "execute_code", {"command": command, "session_id": session})
            await until(lambda: processes_with(mark), "the program runs")
            tasks.cancel_scope.cancel()
        await until(lambda: not processes_with(mark), "the program is gone")
        assert await final_status(server, session) == "cancelled"
        # The SDK's client breaks when it is left while an answer that nobody waits for comes in.
        await client.call_tool("list_executions", {})


@pytest.mark.parametrize("era", ["modern", "older"])
async def test_async_start_is_untouched_by_its_connection(server: Served, era: str) -> None:
    mark, command = marked_sleep(1)
    session = f"async-{mark[-12:]}"
    body = tool_request("execute_code_async", {"command": command, "session_id": session})
    async with httpx2.AsyncClient() as http:
        headers = modern_headers("tools/call", "execute_code_async")
        if era == "older":
            del body["params"]["_meta"]
            headers = await older_session(http, server.url)
        stream = await raw_post(server, headers, body)
        await until(lambda: processes_with(mark), "the program runs")
        await stream.aclose()
        if era == "older":
            assert (await http.delete(server.url, headers=headers)).status_code == 200
    assert await final_status(server, session) == "completed"


@pytest.mark.parametrize("mode", MODES)
async def test_progress_brings_the_newest_output_and_grows(server: Served, mode: str) -> None:
    told: list[tuple[float, str]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        told.append((progress, message or ""))

    async with connected(server.url, mode) as client:
        result = await client.call_tool(
            "execute_code",
            {"command": "for i in 1 2 3 4; do echo part $i; sleep 0.4; done; head -c 9000 /dev/zero | tr '\\0' z"},
            progress_callback=listen,
        )
    assert not result.is_error
    assert [number for number, _ in told] == sorted({number for number, _ in told})
    assert any("part 1" in message for _, message in told)
    assert 2 <= len(told) <= 6
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
    async with httpx2.AsyncClient(timeout=30) as http:
        headers = await older_session(http, server.url)

        def body(command: str) -> dict[str, Any]:
            request = tool_request("execute_code", {"command": command}, request_id=5)
            del request["params"]["_meta"]
            return request

        mark = f"mark-{uuid.uuid4().hex}"
        answers: list[httpx2.Response] = []

        async def first() -> None:
            answers.append(
                await http.post(server.url, json=body(f"sh -c 'sleep 1; echo first' {mark}"), headers=headers)
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await until(lambda: processes_with(mark), "the first runs")
            second = await http.post(server.url, json=body("echo second"), headers=headers)
        assert second.status_code == 409
        assert "first" in answers[0].text
        third = await http.post(server.url, json=body("echo third"), headers=headers)
        assert "third" in third.text
