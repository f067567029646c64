"""One client over standard input and output."""

from __future__ import annotations

import json
import signal
import socket
import subprocess  # noqa: TID251  # the server under test is a program
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import EmptyResult, ResourceUpdatedNotification, SubscribeRequest, SubscribeRequestParams

from tests.integration.mcp.harness import (
    MODES,
    PATIENCE_SECONDS,
    call,
    environment,
    eventually,
    modern_request,
    processes_with,
    sandbox_program,
    tool_request,
    until,
)

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

COMMAND = [sandbox_program(), "serve", "--transport", "stdio"]
LONGEST_LINE_READ = 10 << 20
"""A client with the TypeScript SDK ends the connection at a longer line."""


@pytest.mark.parametrize("mode", MODES)
async def test_tools_work_over_stdio(tmp_path: Path, mode: str) -> None:
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment(), cwd=tmp_path)
    async with Client(parameters, mode=mode) as client:
        assert (await call(client, "execute_code", command="echo over stdio"))["stdout"] == "over stdio\n"
        big = await call(client, "execute_code", command="seq 1 200000", max_bytes=8 << 20)
        assert big["stdout"].endswith("\n200000\n")


def test_an_answer_is_no_longer_than_clients_read(tmp_path: Path) -> None:
    asked = {"command": "seq 1 1000000; printf '%0900000d' 0 | tr 0 '\\001'", "max_bytes": 8 << 20}
    with start(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as process:
        out, err = process.communicate(messages(tool_request("execute_code", asked)), timeout=2 * PATIENCE_SECONDS)
    (line,) = out.splitlines()
    assert 4 << 20 < len(line) < LONGEST_LINE_READ, err
    reply = json.loads(line)["result"]["structuredContent"]
    assert reply["stdout"].startswith("1\n2\n")
    assert reply["stdout"].endswith("\1")
    assert reply["truncation"]["omitted_bytes"] > 1 << 20


def start(tmp_path: Path, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        COMMAND,
        env=environment(**variables),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def messages(*bodies: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(body).encode() + b"\n" for body in bodies)


def test_calls_before_the_end_of_input_are_answered_and_stdout_is_all_protocol(tmp_path: Path) -> None:
    with start(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as process:
        asked = tool_request("execute_code", {"command": "sleep 0.5; echo answered"}, request_id=9)
        out, err = process.communicate(messages(asked), timeout=PATIENCE_SECONDS)
    lines = [json.loads(line) for line in out.splitlines()]
    (answer,) = [line for line in lines if line.get("id") == 9]
    assert answer["result"]["structuredContent"]["stdout"] == "answered\n"
    assert process.returncode == 0, err
    assert b"Traceback" not in err


def test_end_of_input_ends_what_was_started(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with start(tmp_path) as process:
        assert process.stdin is not None
        asked = tool_request("execute_code_async", {"command": ["sh", "-c", "sleep 60; true", mark]})
        process.stdin.write(messages(asked))
        process.stdin.flush()
        eventually(lambda: processes_with(mark), "it runs")
        process.stdin.close()
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert processes_with(mark) == []


def test_a_client_that_is_killed_during_a_call_is_not_waited_for(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with start(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(messages(tool_request("execute_code", {"command": ["sh", "-c", "sleep 60; true", mark]})))
        process.stdin.flush()
        eventually(lambda: processes_with(mark), "it runs")
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert processes_with(mark) == []


def test_a_client_that_ends_only_its_half_of_a_socket_is_answered(tmp_path: Path) -> None:
    asked = tool_request("execute_code", {"command": "sleep 0.5; echo answered"}, request_id=9)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            COMMAND,
            env=environment(SANDBOX_DRAIN_GRACE_SECONDS="600"),
            cwd=tmp_path,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
        theirs.close()
        ours.settimeout(PATIENCE_SECONDS)
        ours.sendall(messages(asked))
        ours.shutdown(socket.SHUT_WR)
        with ours.makefile("rb") as answers:
            (line,) = answers.read().splitlines()
        assert process.wait(timeout=PATIENCE_SECONDS) == 0
    assert json.loads(line)["result"]["structuredContent"]["stdout"] == "answered\n"


def test_signal_ends_a_server_whose_client_is_silent(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(messages(tool_request("execute_code", {"command": "true"})))
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_SECONDS) == 0


def test_malformed_lines_do_not_end_it(tmp_path: Path) -> None:
    with start(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as process:
        asked = tool_request("execute_code", {"command": "echo still here"}, request_id=3)
        data = messages(asked) + b"{broken\n\n[]\n" + b"x" * (5 << 20) + b"\n" + messages({**asked, "id": 4})
        out, _ = process.communicate(data, timeout=PATIENCE_SECONDS)
    answers = {answer.get("id"): answer for answer in map(json.loads, out.splitlines())}
    for number in (3, 4):
        assert answers[number]["result"]["structuredContent"]["stdout"] == "still here\n"
    assert process.returncode == 0


@pytest.mark.parametrize("mode", MODES)
async def test_updates_of_a_resource_come_over_stdio(tmp_path: Path, mode: str) -> None:
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment(), cwd=tmp_path)
    heard: list[str] = []

    async def note(message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(message.params.uri)

    async with Client(parameters, mode=mode, message_handler=note) as client:
        started = await call(client, "execute_code_async", command="cat", interactive=True)
        uri = f"execution://{started['execution_id']}"
        with anyio.fail_after(PATIENCE_SECONDS):
            if mode == "legacy":
                request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
                await client.session.send_request(request, EmptyResult)
                await call(client, "send_stdin", execution_id=started["execution_id"], input_data="", end=True)
                await until(lambda: heard, "the update comes")
            else:
                async with client.listen(resource_subscriptions=[uri]) as news:
                    await call(client, "send_stdin", execution_id=started["execution_id"], input_data="", end=True)
                    heard = [event.uri async for event in news if isinstance(event, ResourceUpdated)]
        assert set(heard) == {uri}


def test_an_open_listen_stream_does_not_hold_up_the_end_of_input(tmp_path: Path) -> None:
    with start(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as process:
        began = tool_request("execute_code_async", {"command": "cat", "interactive": True}, request_id=1)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(messages(began))
        process.stdin.flush()
        execution_id = json.loads(process.stdout.readline())["result"]["structuredContent"]["execution_id"]
        wanted = {"notifications": {"resourceSubscriptions": [f"execution://{execution_id}"]}}
        process.stdin.write(messages(modern_request("subscriptions/listen", wanted, request_id=2)))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["method"] == "notifications/subscriptions/acknowledged"
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
