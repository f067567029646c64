"""Every tool through nginx, servers that run nothing and workers, as it is with a single server; on both eras."""

from __future__ import annotations

import base64
import uuid
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, TOOLS, call, connected, modern_headers, refusal, tool_request, until
from tests.integration.replicas.harness import check_log, printed, whole_log

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_every_tool_is_tried_here(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS


async def test_execute_code(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        said = await call(client, "execute_code", command="cat; echo err >&2; exit 3", stdin="given\n")
        assert (said["status"], said["exit_code"]) == ("completed", 3)
        assert (said["stdout"], said["stderr"]) == ("given\n", "err\n")
        argv = await call(client, "execute_code", command=["printf", "%s|", "a b", "$HOME"])
        assert argv["stdout"] == "a b|$HOME|"
        yielded = await call(client, "execute_code", command="sleep 100", yield_seconds=0.2)
        assert yielded["status"] in {"pending", "running"}
        await call(client, "cancel_execution", execution_id=yielded["execution_id"], force=True)
        asked = {"network": {"allowed_domains": ["a.example"]}}
        refused = await refusal(client, "execute_code", command="true", sandbox_config=asked)
        assert refused["code"] == "policy_refused"


async def test_what_takes_too_long_or_says_nothing_is_ended(front_door: str, mode: str) -> None:
    limits: dict[str, dict[str, Any]] = {
        "wall_time": {"timeout_seconds": 5},
        "idle_time": {"sandbox_config": {"resource_limits": {"idle_timeout_seconds": 5}}},
    }
    async with connected(front_door, mode) as client, anyio.create_task_group() as tasks:

        async def run(reason: str, limit: dict[str, Any]) -> None:
            said = await call(client, "execute_code", command="echo up; sleep 100", **limit)
            assert (said["status"], said["termination_reason"], said["stdout"]) == ("timeout", reason, "up\n")

        for reason, limit in limits.items():
            tasks.start_soon(run, reason, limit)


async def test_output_in_pages_while_it_runs_and_its_ends_afterwards(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        program = "for i in 1 2 3; do echo $i; read -r go; done; head -c 300000 /dev/zero | tr '\\0' x; echo; echo tail"
        execution_id = (await call(client, "execute_code_async", command=program, interactive=True))["execution_id"]
        cursor, seen = "0", ""
        with anyio.fail_after(60):
            for number in ("1", "2", "3"):
                while f"{number}\n" not in seen:
                    page = await call(
                        client, "get_execution_output", execution_id=execution_id, last_event_id=cursor, wait_seconds=20
                    )
                    cursor, seen = page["last_event_id"], seen + page["stdout"]
                    assert page["status"] == "running"
                await call(client, "send_stdin", execution_id=execution_id, input_data="go")
        await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
        events = await whole_log(client, execution_id)
        check_log(events)
        assert printed(events) == "1\n2\n3\n" + "x" * 300_000 + "\ntail\n"
        ends = await call(client, "execute_code", command="seq 100000", max_bytes=1000)
        assert ends["stdout"].startswith("1\n2\n")
        assert ends["stdout"].endswith("100000\n")
        assert ends["truncation"]["omitted_bytes"] > 0
        raw = await call(client, "execute_code_async", command=r"printf '\377\000'")
        said = await call(
            client,
            "get_execution_output",
            execution_id=raw["execution_id"],
            wait=True,
            wait_seconds=60,
            encoding="base64",
        )
        assert base64.b64decode(said["stdout"]) == b"\xff\0"


async def test_input(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        execution_id = (await call(client, "execute_code_async", command="cat", interactive=True))["execution_id"]
        for number in range(20):
            sent = await call(client, "send_stdin", execution_id=execution_id, input_data=f"line {number}")
            assert sent["sent_bytes"] == len(f"line {number}\n")
        encoded = base64.b64encode(b"no newline").decode()
        await call(client, "send_stdin", execution_id=execution_id, input_data=encoded, encoding="base64", end=True)
        said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
        assert said["stdout"] == "".join(f"line {number}\n" for number in range(20)) + "no newline"
        over = await refusal(client, "send_stdin", execution_id=execution_id, input_data="late")
        assert over["code"] == "execution_finished"
        bad = await refusal(client, "send_stdin", execution_id=execution_id, input_data="%", encoding="base64")
        assert (bad["code"], bad["field"]) == ("invalid_argument", "input_data")
        deaf = (await call(client, "execute_code_async", command="sleep 100"))["execution_id"]
        assert (await refusal(client, "send_stdin", execution_id=deaf, input_data="x"))["code"] == "not_interactive"
        await call(client, "cancel_execution", execution_id=deaf, force=True)


async def test_cancel(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        kind = await call(
            client, "execute_code_async", command="trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done"
        )
        await until_printed(client, kind["execution_id"], "up\n")
        said = await call(client, "cancel_execution", execution_id=kind["execution_id"])
        assert said["was_running"]
        ended = await call(
            client, "get_execution_output", execution_id=kind["execution_id"], wait=True, wait_seconds=60
        )
        assert (ended["status"], ended["stdout"]) == ("cancelled", "up\nbye\n")
        deaf = await call(client, "execute_code_async", command="trap '' TERM; echo up; while :; do sleep 1; done")
        await until_printed(client, deaf["execution_id"], "up\n")
        await call(client, "cancel_execution", execution_id=deaf["execution_id"], force=True)
        ended = await call(
            client, "get_execution_output", execution_id=deaf["execution_id"], wait=True, wait_seconds=60
        )
        assert ended["status"] == "cancelled"
        again = await call(client, "cancel_execution", execution_id=deaf["execution_id"])
        assert not again["was_running"]


async def test_status_and_listing(front_door: str, mode: str) -> None:
    session = f"tools-{mode}"
    async with connected(front_door, mode) as client:
        ids = [
            (await call(client, "execute_code", command=f"exit {number}", session_id=session))["execution_id"]
            for number in range(3)
        ]
        status = await call(client, "get_execution_status", execution_id=ids[2])
        assert (status["status"], status["exit_code"], status["command"]) == ("completed", 2, "exit 2")
        assert status["created_at"] <= status["started_at"] <= status["ended_at"]
        assert status["usage"]["queued_seconds"] > 0
        assert status["isolation"]["isolated"]
        page = await call(client, "list_executions", session_id=session, status="completed", limit=2)
        assert [entry["execution_id"] for entry in page["executions"]] == ids[:0:-1]
        rest = await call(client, "list_executions", session_id=session, before=page["next_before"])
        assert [entry["execution_id"] for entry in rest["executions"]] == ids[:1]
        unknown = "01a20000-0000-7000-8000-000000000000"
        assert (await refusal(client, "get_execution_status", execution_id=unknown))["code"] == "execution_not_found"
        told = await call(client, "get_capabilities")
        assert told["runner"] == "remote"


async def test_the_same_key_starts_once_whichever_server_is_asked(front_door: str, mode: str) -> None:
    async with connected(front_door, mode) as client:
        said = [await call(client, "execute_code", command="date +%N", idempotency_key=f"key-{mode}") for _ in range(4)]
        assert len({(reply["execution_id"], reply["stdout"]) for reply in said}) == 1


async def test_progress_of_a_call_that_is_waited_for(front_door: str, mode: str) -> None:
    told: list[str] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        del progress, total
        told.append(message or "")

    async with connected(front_door, mode) as client:
        command = "for i in 1 2 3; do echo part $i; sleep 0.7; done"
        result = await client.call_tool("execute_code", {"command": command}, progress_callback=listen)
    assert not result.is_error
    assert any("part 1" in message for message in told)


@pytest.mark.parametrize(("on_disconnect", "status"), [(None, "cancelled"), ("detach", "completed")])
async def test_a_call_whose_connection_drops(front_door: str, on_disconnect: str | None, status: str) -> None:
    mark = uuid.uuid4().hex
    program = f"read -r go; sleep 2 # {mark}"
    arguments: dict[str, object] = {"command": program, "session_id": mark, "interactive": True}
    if on_disconnect:
        arguments["on_disconnect"] = on_disconnect
    body = tool_request("execute_code", arguments)
    async with connected(front_door) as client, anyio.create_task_group() as tasks:

        async def post() -> None:
            async with httpx2.AsyncClient(timeout=60) as http:
                await http.post(front_door, json=body, headers=modern_headers("tools/call", "execute_code"))

        async def that_is(wanted: str) -> str | None:
            entries = (await call(client, "list_executions", session_id=mark))["executions"]
            return next((entry["execution_id"] for entry in entries if entry["status"] == wanted), None)

        tasks.start_soon(post)
        execution_id = await until(partial(that_is, "running"), "it runs")
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            if on_disconnect:
                await call(client, "send_stdin", execution_id=execution_id, input_data="go")
            assert await until(partial(that_is, status), f"it is {status}") == execution_id


async def until_printed(client: Client, execution_id: str, wanted: str) -> None:
    async def has_printed() -> bool:
        page = await call(client, "get_execution_output", execution_id=execution_id)
        return bool(page["stdout"] == wanted)

    await until(has_printed, "it has printed")
