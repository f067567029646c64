"""`srt-mcp-server`: every reply has the shape that the guide's callers know, and the text is the same JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from mcp import Client

from tests.integration.mcp.harness import Served, connected, serving, structured, text, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

UNKNOWN = "0199aaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"


@pytest.fixture(scope="module")
def guide_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("guide"), SANDBOX_GUIDE_REPLIES="true") as served:
        yield served


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, guide_server: Served) -> AsyncIterator[Client]:
    async with connected(guide_server.url, request.param) as connection:
        yield connection


async def said(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error
    assert json.loads(text(result)) == structured(result).get("result", structured(result))
    return structured(result)


async def test_waited_execution_has_code_and_events(client: Client) -> None:
    reply = await said(client, "execute_code", command="echo out; echo err >&2; exit 3")
    assert (reply["status"], reply["exit_code"]) == ("completed", 3)
    events = {event["type"]: event for event in reply["output"]}
    assert (events["stdout"]["data"], events["stderr"]["data"]) == ("out\n", "err\n")
    assert (events["exit"]["code"], events["exit"]["duration_ms"] > 0) == (3, True)
    assert all(isinstance(event["ts"], float) and event["event_id"] for event in reply["output"])
    assert "stdout" not in reply


async def test_timeout_event_carries_its_limit(client: Client) -> None:
    reply = await said(client, "execute_code", command="sleep 60", timeout_seconds=0.2)
    assert reply["status"] == "timeout"
    assert reply["output"][-1]["type"] == "timeout"
    assert reply["output"][-1]["timeout_seconds"] == 0.2


async def test_starts_say_running_and_polling_ends_with_the_output(client: Client) -> None:
    unwaited = await said(client, "execute_code", command="true", wait_for_completion=False)
    assert unwaited["status"] == "running"
    assert unwaited["execution_id"] in unwaited["message"]
    started = await said(client, "execute_code_async", command="read x; echo $x", interactive=True)
    assert set(started) == {"execution_id", "status"}
    assert started["status"] == "running"
    identity = {"execution_id": started["execution_id"]}
    assert (await said(client, "send_stdin", **identity, input_data="hello"))["success"] is True

    async def ended() -> dict[str, Any] | None:
        info = await said(client, "get_execution_status", **identity)
        assert info["status"] in {"running", "completed"}
        return info if info["status"] == "completed" else None

    info = await until(ended, "it completes")
    assert (info["id"], info["exit_code"], info["error"]) == (identity["execution_id"], 0, None)
    reply = await said(client, "get_execution_output", **identity)
    assert (reply["status"], reply["exit_code"]) == ("completed", 0)
    assert "".join(event["data"] for event in reply["output"] if event["type"] == "stdout") == "hello\n"
    newer = await said(client, "get_execution_output", **identity, last_event_id=reply["output"][-1]["event_id"])
    assert newer["output"] == []


async def test_more_output_than_our_default_comes_whole(client: Client) -> None:
    reply = await said(client, "execute_code", command="seq 1 100000")
    printed = "".join(event["data"] for event in reply["output"] if event["type"] == "stdout")
    assert printed == "".join(f"{number}\n" for number in range(1, 100_001))


async def test_list_is_a_list(client: Client) -> None:
    made = await said(client, "execute_code", command="true")
    listed = await said(client, "list_executions")
    assert listed["result"][0]["execution_id"] == made["execution_id"]


async def test_failures_are_ordinary_results(client: Client) -> None:
    unknown = await said(client, "get_execution_output", execution_id=UNKNOWN)
    assert (unknown["status"], unknown["code"]) == ("failed", "execution_not_found")
    assert UNKNOWN in unknown["error"]
    made = await said(client, "execute_code", command="true")
    refused = await said(client, "send_stdin", execution_id=made["execution_id"], input_data="x")
    assert (refused["success"], refused["code"]) == (False, "execution_finished")
    cancelled = await said(client, "cancel_execution", execution_id=made["execution_id"])
    assert (cancelled["success"], cancelled["was_running"]) == (True, False)


async def test_capabilities_are_one_object_and_no_denials_are_added_to_a_reply(client: Client) -> None:
    assert (await said(client, "get_capabilities"))["runner"] == "bubblewrap"
    reply = await said(client, "execute_code", command="true")
    assert set(reply) == {"execution_id", "status", "exit_code", "output", "last_event_id"}
