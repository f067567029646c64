"""Bad input through the tools: each a clear error or outcome, and nothing hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError

from tests.integration.mcp.harness import Served, call, connected, refusal

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

UNKNOWN = "0199aaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"
SECONDS = 60


@pytest.fixture
async def client(server: Served) -> AsyncIterator[Client]:
    with anyio.fail_after(SECONDS):
        async with connected(server.url) as connection:
            yield connection


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "command"),
        ({"command": ""}, "command"),
        ({"command": "  \n"}, "command"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"command": 5}, "command"),
        ({"command": ["echo", 5]}, "command[1]"),
        ({"command": "echo a\0b"}, "command"),
        ({"command": "x" * (1 << 20)}, "command"),
        ({"command": "true", "environment": {f"V{n}": "x" * 1000 for n in range(1000)}}, "environment"),
        ({"command": "true", "environment": {"A": 1}}, "environment.A"),
        ({"command": "true", "environment": {"A=B": "1"}}, "environment"),
        ({"command": "true", "environment": {"A": "a\0b"}}, "environment.A"),
        ({"command": "true", "timeout_seconds": "5"}, "timeout_seconds"),
        ({"command": "true", "timeout_seconds": 0}, "timeout_seconds"),
        ({"command": "true", "timeout_seconds": -1}, "timeout_seconds"),
        ({"command": "true", "timeout_seconds": 1e300}, "timeout_seconds"),
        ({"command": "true", "timeout_seconds": True}, "timeout_seconds"),
        ({"command": "true", "max_bytes": 0}, "max_bytes"),
        ({"command": "true", "max_bytes": 1.5}, "max_bytes"),
        ({"command": "true", "max_bytes": (8 << 20) + 1}, "max_bytes"),
        ({"command": "true", "interactive": "yes"}, "interactive"),
        ({"command": "true", "working_directory": ""}, "working_directory"),
        ({"command": "true", "working_directory": "a\0b"}, "working_directory"),
        ({"command": "true", "session_id": "a b"}, "session_id"),
        ({"command": "true", "on_disconnect": "explode"}, "on_disconnect"),
        ({"command": "true", "comand": "x"}, "comand"),
        ({"command": "true", "sandbox_config": {"nonsense": 1}}, "nonsense"),
        ({"command": "true", "sandbox_config": {"network": {"allowed": []}}}, "network.allowed"),
        ({"command": "true", "sandbox_config": {"resource_limits": {"max_processes": -1}}}, None),
        ({"command": "true", "sandbox_config": {"resource_limits": {"max_processes": "5"}}}, None),
        ({"command": "true", "sandbox_config": {"resource_limits": {"max_processes": 10**30}}}, None),
        ({"command": "true", "sandbox_config": {"max_output_bytes": 10**400}}, None),
        ({"command": "true", "sandbox_config": []}, "sandbox_config"),
    ],
)
async def test_bad_argument_is_refused_by_name(client: Client, arguments: dict[str, Any], field: str | None) -> None:
    error = await refusal(client, "execute_code", **arguments)
    assert error["code"] == "invalid_argument"
    if field is not None:
        assert error["field"] == field
    assert len(error["message"]) < 600


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"network": {"allowedDomains": ["example.com"]}}, "network.allowed_domains"),
        ({"resourceLimits": {"maxMemoryMb": 10**9}}, "resource_limits.max_memory_mb"),
        ({"filesystem": {"allow_write": ["/etc"]}}, "filesystem.allow_write"),
    ],
)
async def test_policy_over_the_ceiling_is_refused_naming_the_field(
    client: Client, config: dict[str, Any], field: str
) -> None:
    error = await refusal(client, "execute_code", command="true", sandbox_config=config)
    assert error["code"] == "policy_refused"
    assert [violation["field"] for violation in error["violations"]] == [field]


async def test_timeout_over_the_ceiling_is_refused(client: Client) -> None:
    error = await refusal(client, "execute_code", command="true", timeout_seconds=301)
    assert (error["code"], error["violations"][0]["limit"]) == ("policy_refused", "at most 300.0")


@pytest.mark.parametrize("tool", ["get_execution_output", "get_execution_status", "cancel_execution", "send_stdin"])
async def test_unknown_and_malformed_ids_are_errors(client: Client, tool: str) -> None:
    more = {"input_data": "x"} if tool == "send_stdin" else {}
    assert (await refusal(client, tool, execution_id=UNKNOWN, **more))["code"] == "execution_not_found"
    for malformed in ("", "nope", UNKNOWN.upper(), f"{UNKNOWN}\n", "../../etc/passwd", "x" * 4000, 7):
        error = await refusal(client, tool, execution_id=malformed, **more)
        assert (error["code"], error["field"]) == ("invalid_argument", "execution_id")


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 30, "1+", "1+x", "0+999999999"])
async def test_cursor_that_no_reply_contained_is_refused(client: Client, cursor: str) -> None:
    said = await call(client, "execute_code", command="echo x")
    error = await refusal(client, "get_execution_output", execution_id=said["execution_id"], last_event_id=cursor)
    assert (error["code"], error["field"]) == ("invalid_argument", "last_event_id")


async def test_cursor_past_the_end_reads_nothing(client: Client) -> None:
    said = await call(client, "execute_code", command="echo x")
    page = await call(client, "get_execution_output", execution_id=said["execution_id"], last_event_id="999")
    assert (page["stdout"], page["has_more"]) == ("", False)


async def test_unknown_tool_is_a_protocol_error_with_a_hint(client: Client) -> None:
    with pytest.raises(MCPError, match="did you mean execute_code"):
        await client.call_tool("execute_cod", {})


async def test_null_counts_as_left_out(client: Client) -> None:
    said = await call(client, "execute_code", command="true", timeout_seconds=None, working_directory=None)
    assert said["exit_code"] == 0


async def test_whole_float_is_a_whole_number(client: Client) -> None:
    assert (await call(client, "execute_code", command="echo x", max_bytes=4096.0))["stdout"] == "x\n"
