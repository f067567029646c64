"""Each tool over real HTTP with the SDK's client, in both eras."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, Served, call, connected, refusal, structured, text, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

UNKNOWN = "0199aaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"


@pytest.fixture(params=MODES)
async def client(request: pytest.FixtureRequest, server: Served) -> AsyncIterator[Client]:
    async with connected(server.url, request.param) as connection:
        yield connection


async def test_result_has_streams_code_and_one_line_on_the_end(client: Client) -> None:
    result = await client.call_tool("execute_code", {"command": "echo out; echo err >&2; exit 3"})
    said = structured(result)
    assert not result.is_error
    assert (said["status"], said["exit_code"], said["termination_reason"]) == ("completed", 3, "exited")
    assert (said["stdout"], said["stderr"], said["signal"], said["truncation"]) == ("out\n", "err\n", None, None)
    assert said["isolation"]["isolated"] is True
    assert said["usage"]["stdout_bytes"] == 4
    assert text(result).startswith("out\n[stderr]\nerr\n[exit 3 in ")
    assert "output" not in said


async def test_list_command_runs_without_a_shell(client: Client) -> None:
    assert (await call(client, "execute_code", command=["echo", "$HOME; a  b"]))["stdout"] == "$HOME; a  b\n"


async def test_stdin_environment_and_directory_reach_the_program(client: Client) -> None:
    said = await call(
        client,
        "execute_code",
        command='cat; echo "$WHO"; pwd',
        stdin="typed é\n",
        environment={"WHO": "me"},
        working_directory="/tmp",
    )
    assert said["stdout"] == "typed é\nme\n/tmp\n"


async def test_timeout_is_a_result(client: Client) -> None:
    result = await client.call_tool("execute_code", {"command": "sleep 60", "timeout_seconds": 0.2})
    said = structured(result)
    assert not result.is_error
    assert (said["status"], said["termination_reason"], said["stdout"]) == ("timeout", "wall_time", "")
    assert "[timeout after " in text(result)


async def test_what_was_printed_before_a_timeout_is_in_the_result(server: Served) -> None:
    async with connected(server.url) as client:
        said = await call(client, "execute_code", command="echo a; sleep 60", timeout_seconds=4)
    assert (said["status"], said["stdout"]) == ("timeout", "a\n")


@pytest.mark.parametrize(("command", "code"), [(["/no/such/program"], 127), (["/etc/passwd"], 126)])
async def test_program_that_cannot_run_has_a_shells_code(client: Client, command: list[str], code: int) -> None:
    assert (await call(client, "execute_code", command=command))["exit_code"] == code


async def test_missing_directory_is_a_failed_execution(client: Client) -> None:
    said = await call(client, "execute_code", command="true", working_directory="/no/such/place")
    assert (said["status"], said["termination_reason"]) == ("failed", "setup_failed")


async def test_yield_answers_early_and_pages_join_to_the_whole(client: Client) -> None:
    asked = {"command": "echo one; read go; echo two", "interactive": True, "idempotency_key": f"key-{uuid.uuid4()}"}
    started = await call(client, "execute_code", **asked, yield_seconds=0.05)
    assert (started["status"] in {"pending", "running"}, started["exit_code"]) == (True, None)
    identity = {"execution_id": started["execution_id"]}

    async def printed() -> bool:
        return bool((await call(client, "get_execution_output", **identity))["stdout"])

    await until(printed, "it prints")
    first = await call(client, "execute_code", **asked, yield_seconds=0.05, include_events=True)
    assert (first["execution_id"], first["status"]) == (started["execution_id"], "running")
    assert (first["stdout"], first["exit_code"]) == ("one\n", None)
    assert [event["type"] for event in first["output"]][-1] == "stdout"
    await call(client, "send_stdin", **identity, input_data="go\n")
    rest = await call(client, "get_execution_output", **identity, last_event_id=first["last_event_id"], wait=True)
    assert (rest["status"], rest["stdout"], rest["has_more"]) == ("completed", "two\n", False)
    assert rest["output"][-1]["type"] == "exit"
    assert rest["output"][-1]["exit_code"] == 0


@pytest.mark.parametrize("max_bytes", [1, 3, 1000, 100_000, 8 << 20])
async def test_pages_of_any_size_join_to_the_output(server: Served, max_bytes: int) -> None:
    count = 40 if max_bytes < 10 else 40_000
    async with connected(server.url) as client:
        said = await call(client, "execute_code", command=f"seq 1 {count}; printf 'é€𝄞end'", max_bytes=100)
        pages, cursor = [], None
        while True:
            arguments: dict[str, Any] = {"max_bytes": max_bytes, "include_events": False, "include_text": False}
            if cursor is not None:
                arguments["last_event_id"] = cursor
            page = await call(client, "get_execution_output", execution_id=said["execution_id"], **arguments)
            pages.append(page["stdout"])
            cursor = page["last_event_id"]
            assert len(page["stdout"].encode()) <= max(max_bytes, 4)
            if not page["has_more"]:
                break
    assert "".join(pages) == "".join(f"{number}\n" for number in range(1, count + 1)) + "é€𝄞end"


async def test_long_output_keeps_both_ends_and_says_how_to_read_on(client: Client) -> None:
    result = await client.call_tool("execute_code", {"command": "seq 1 100000", "max_bytes": 1000})
    said = structured(result)
    assert said["stdout"].startswith("1\n2\n")
    assert said["stdout"].endswith("99999\n100000\n")
    assert len(said["stdout"]) < 1400
    assert said["truncation"]["omitted_bytes"] > 580_000
    assert "get_execution_output" in said["truncation"]["how"]
    assert f"{said['truncation']['omitted_bytes']} bytes left out" in text(result)


async def test_what_is_left_out_can_be_read_from_where_the_reply_stopped(client: Client) -> None:
    said = await call(client, "execute_code", command="seq 1 3000", max_bytes=1000, include_events=True)
    head = said["stdout"].partition("\n[...")[0]
    cursor = re.search(r'last_event_id="([^"]+)"', said["truncation"]["how"])
    assert cursor is not None
    assert cursor[1] in [event["event_id"] for event in said["output"]]
    rest = await call(
        client, "get_execution_output", execution_id=said["execution_id"], last_event_id=cursor[1], max_bytes=100_000
    )
    assert head + rest["stdout"] == "".join(f"{number}\n" for number in range(1, 3001))


async def test_output_over_the_cap_is_reported_as_dropped_not_as_left_out(client: Client) -> None:
    said = await call(
        client,
        "execute_code",
        command="head -c 3000000 /dev/zero | tr '\\0' x",
        sandbox_config={"max_output_bytes": 1_000_000},
        max_bytes=1000,
    )
    assert said["truncation"]["dropped_bytes"] == 2_000_000
    assert 990_000 < said["truncation"]["omitted_bytes"] <= 1_000_000


async def test_bytes_that_are_not_text_are_replaced_or_base64(client: Client) -> None:
    said = await call(client, "execute_code", command=r"printf '\377\000a'")
    assert said["stdout"] == "\ufffd\x00a"
    page = await call(client, "get_execution_output", execution_id=said["execution_id"], encoding="base64")
    assert base64.b64decode(page["stdout"]) == b"\xff\x00a"
    assert base64.b64decode(page["output"][1]["data"]) == b"\xff\x00a"


async def test_long_poll_returns_as_soon_as_there_is_something_new(client: Client) -> None:
    started = await call(client, "execute_code_async", command="read line; echo got $line", interactive=True)
    identity = {"execution_id": started["execution_id"]}
    ready = await call(client, "get_execution_output", **identity, wait_seconds=30)
    assert (ready["status"], ready["last_event_id"]) == ("running", "1")
    nothing = await call(client, "get_execution_output", **identity, last_event_id="1", wait_seconds=0.2)
    assert (nothing["status"], nothing["stdout"], nothing["last_event_id"]) == ("running", "", "1")
    assert (await call(client, "send_stdin", **identity, input_data="it"))["sent_bytes"] == 3
    some = await call(client, "get_execution_output", **identity, last_event_id="1", wait_seconds=30)
    assert some["stdout"] == "got it\n"


async def test_end_of_input_ends_a_reader(client: Client) -> None:
    started = await call(client, "execute_code", command="wc -c", interactive=True, wait_for_completion=False)
    identity = {"execution_id": started["execution_id"]}
    await call(client, "send_stdin", **identity, input_data="ab\n")
    await call(client, "send_stdin", **identity, input_data="", end=True)
    page = await call(client, "get_execution_output", **identity, wait=True)
    assert page["stdout"].strip() == "3"
    assert (await refusal(client, "send_stdin", **identity, input_data="late"))["code"] == "execution_finished"


async def test_input_to_a_program_that_takes_none_is_refused(client: Client) -> None:
    started = await call(client, "execute_code_async", command="sleep 30")
    identity = {"execution_id": started["execution_id"]}
    assert (await refusal(client, "send_stdin", **identity, input_data="x"))["code"] == "not_interactive"
    await call(client, "cancel_execution", **identity, force=True)


async def test_cancel_tells_whether_it_was_running(client: Client) -> None:
    started = await call(client, "execute_code_async", command="sleep 30")
    identity = {"execution_id": started["execution_id"]}
    first = await call(client, "cancel_execution", **identity)
    assert (first["was_running"], first["status"]) == (True, "cancelled")
    second = await call(client, "cancel_execution", **identity)
    assert (second["was_running"], second["status"]) == (False, "cancelled")


async def test_status_tells_everything_but_the_output(client: Client) -> None:
    said = await call(client, "execute_code", command="echo x; exit 4", session_id="mine")
    status = await call(client, "get_execution_status", execution_id=said["execution_id"])
    assert (status["status"], status["exit_code"], status["command"]) == ("completed", 4, "echo x; exit 4")
    assert (status["session_id"], status["last_event_id"]) == ("mine", said["last_event_id"])
    assert status["policy"]["resource_limits"]["timeout_seconds"] == 60
    assert status["started_at"] <= status["ended_at"]
    assert "stdout" not in status


async def test_list_filters_and_pages_newest_first(client: Client) -> None:
    session = f"list-{uuid.uuid4().hex[:12]}"
    made = [
        (await call(client, "execute_code", command=f"exit {code}", session_id=session))["execution_id"]
        for code in range(3)
    ]
    first = await call(client, "list_executions", session_id=session, limit=2, status=["completed", "failed"])
    assert [entry["execution_id"] for entry in first["executions"]] == [made[2], made[1]]
    second = await call(client, "list_executions", session_id=session, limit=2, before=first["next_before"])
    assert [entry["execution_id"] for entry in second["executions"]] == [made[0]]
    assert second["next_before"] is None
    assert (await call(client, "list_executions", session_id=session, status="running"))["executions"] == []


async def test_events_come_also_when_nothing_is_waited_for(client: Client) -> None:
    said = await call(client, "execute_code", command="true", wait_for_completion=False, include_events=True)
    assert said["output"] == []


async def test_every_reply_fits_its_published_schema(client: Client) -> None:
    schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
    started = structured(await client.call_tool("execute_code_async", {"command": "cat", "interactive": True}))
    identity = {"execution_id": started["execution_id"]}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("execute_code", {"command": "echo x", "include_events": True}),
        ("execute_code", {"command": "sleep 9", "yield_seconds": 0.05}),
        ("execute_code", {"command": "true", "wait_for_completion": False}),
        ("execute_code", {"comand": "true"}),
        ("execute_code", {"command": "true", "sandbox_config": {"network": {"allowed_domains": ["a.example"]}}}),
        ("execute_code_async", {"command": "true"}),
        ("get_execution_output", identity),
        ("get_execution_output", {"execution_id": UNKNOWN}),
        ("get_execution_status", identity),
        ("list_executions", {}),
        ("send_stdin", {**identity, "input_data": "x"}),
        ("cancel_execution", identity),
        ("get_execution_status", identity),
    ]
    for name, arguments in calls:
        result = await client.call_tool(name, arguments)
        jsonschema.validate(structured(result), schemas[name])


async def test_executions_outlive_the_connection_that_started_them(server: Served) -> None:
    async with connected(server.url, "legacy") as client:
        started = await call(client, "execute_code_async", command="sleep 0.3; echo alive")
    async with connected(server.url) as client:

        async def over() -> bool:
            said = await call(client, "get_execution_status", execution_id=started["execution_id"])
            return bool(said["status"] == "completed")

        await until(over, "the execution completes")
        assert (await call(client, "get_execution_output", execution_id=started["execution_id"]))["stdout"] == "alive\n"
