"""Any replica answers for what another one runs: by the official client, on both eras, without affinity."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, call, connected, refusal
from tests.integration.replicas.harness import DEPLOY, Replica, caddy, check_log, nginx, printed, whole_log

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.parametrize("mode", MODES)]


async def clients(stack: AsyncExitStack, urls: list[str], mode: str) -> list[Client]:
    return [await stack.enter_async_context(connected(url, mode)) for url in urls]


async def test_started_through_one_and_everything_else_through_the_others(three: list[Replica], mode: str) -> None:
    async with AsyncExitStack() as stack:
        first, second, third = await clients(stack, [replica.url for replica in three], mode)
        started = await call(
            first, "execute_code_async", command="read line; echo got $line; cat", interactive=True, session_id="walk"
        )
        execution_id = started["execution_id"]
        await call(second, "send_stdin", execution_id=execution_id, input_data="one\n")
        await call(third, "send_stdin", execution_id=execution_id, input_data="two\n")
        status = await call(second, "get_execution_status", execution_id=execution_id)
        assert status["status"] == "running"
        listed = await call(third, "list_executions", session_id="walk")
        assert execution_id in [entry["execution_id"] for entry in listed["executions"]]
        ended: list[str] = []

        async def wait(client: Client) -> None:
            said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
            ended.append(said["status"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, second)
            tasks.start_soon(wait, third)
            await call(third, "send_stdin", execution_id=execution_id, input_data="three\n", end=True)
        assert ended == ["completed"] * 2
        for client in (first, second, third):
            events = await whole_log(client, execution_id)
            check_log(events)
            assert printed(events) == "got one\ntwo\nthree\n"


async def test_cancelled_through_another(three: list[Replica], mode: str) -> None:
    async with AsyncExitStack() as stack:
        first, second, third = await clients(stack, [replica.url for replica in three], mode)
        started = await call(first, "execute_code_async", command="echo up; sleep 600")
        execution_id = started["execution_id"]
        cancelled = await call(second, "cancel_execution", execution_id=execution_id)
        assert cancelled["status"] == "cancelled"
        events = await whole_log(third, execution_id)
        check_log(events)
        assert events[-1]["type"] == "cancelled"
        assert (await refusal(third, "send_stdin", execution_id=execution_id, input_data="x"))["code"] in {
            "execution_finished",
            "not_interactive",
        }


async def test_a_waiter_elsewhere_sees_output_while_it_runs(three: list[Replica], mode: str) -> None:
    async with AsyncExitStack() as stack:
        first, second, _ = await clients(stack, [replica.url for replica in three], mode)
        started = await call(first, "execute_code_async", command="cat", interactive=True)
        execution_id, after, seen = started["execution_id"], "0", ""
        for number in range(5):
            await call(first, "send_stdin", execution_id=execution_id, input_data=f"{number}\n")
            while f"{number}\n" not in seen:
                page = await call(
                    second, "get_execution_output", execution_id=execution_id, last_event_id=after, wait_seconds=60
                )
                after, seen = page["last_event_id"], seen + page["stdout"]
        assert seen == "0\n1\n2\n3\n4\n"
        await call(second, "cancel_execution", execution_id=execution_id, force=True)


async def test_a_key_names_one_execution_at_every_replica(three: list[Replica], mode: str) -> None:
    key = f"key-{mode}"
    async with AsyncExitStack() as stack:
        callers = await clients(stack, [replica.url for replica in three], mode)
        found: list[str] = []

        async def ask(client: Client) -> None:
            said = await call(client, "execute_code", command="echo once; sleep 0.5", idempotency_key=key)
            assert said["stdout"] == "once\n"
            found.append(said["execution_id"])

        async with anyio.create_task_group() as tasks:
            for client in (*callers, *callers):
                tasks.start_soon(ask, client)
        assert len(found) == 6
        assert len(set(found)) == 1
        other = await refusal(callers[1], "execute_code_async", command="echo other", idempotency_key=key)
        assert other["code"] == "idempotency_conflict"


async def test_the_places_of_a_session_are_counted_over_all_replicas(three: list[Replica], mode: str) -> None:
    session = f"counted-{mode}"
    holding: dict[str, Any] = {"command": "cat", "interactive": True}
    async with AsyncExitStack() as stack:
        first, second, third = await clients(stack, [replica.url for replica in three], mode)
        ids = [
            (await call(client, "execute_code_async", session_id=session, **holding))["execution_id"]
            for client in (first, second, third, first, second)
        ]
        for execution_id in ids:
            await call(third, "get_execution_output", execution_id=execution_id, wait_seconds=60)
        over = (await call(third, "execute_code_async", command="echo at last", session_id=session))["execution_id"]
        assert (await call(first, "get_execution_status", execution_id=over))["status"] == "pending"
        await call(first, "send_stdin", execution_id=ids[1], input_data="", end=True)
        said = await call(second, "get_execution_output", execution_id=over, wait=True, wait_seconds=60)
        assert (said["status"], said["stdout"]) == ("completed", "at last\n")
        for execution_id in ids:
            await call(third, "cancel_execution", execution_id=execution_id, force=True)


async def test_behind_nginx_round_robin(balanced: str, mode: str) -> None:
    async with connected(balanced, mode) as client:
        await use_everything(client)


async def test_behind_nginx_ip_hash(three: list[Replica], tmp_path: Path, mode: str) -> None:
    with nginx(DEPLOY / "nginx" / "ip-hash.conf", three, tmp_path) as address:
        async with connected(f"{address}/mcp", mode) as client:
            await use_everything(client)


async def test_behind_caddy(three: list[Replica], tmp_path: Path, mode: str) -> None:
    with caddy(three, tmp_path) as address:
        async with connected(f"{address}/mcp", mode) as client:
            await use_everything(client)


async def use_everything(client: Client) -> None:
    """Start, feed, read, list and end executions, each request wherever it goes."""
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert {"execute_code", "send_stdin", "cancel_execution"} <= names
    assert (await call(client, "execute_code", command="echo hi"))["stdout"] == "hi\n"
    started = await call(client, "execute_code_async", command="cat", interactive=True)
    execution_id = started["execution_id"]
    for number in range(9):
        await call(client, "send_stdin", execution_id=execution_id, input_data=f"{number}\n", end=number == 8)
    said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
    assert said["stdout"] == "".join(f"{number}\n" for number in range(9))
    check_log(await whole_log(client, execution_id))
    sleeper = (await call(client, "execute_code_async", command="sleep 600"))["execution_id"]
    assert (await call(client, "cancel_execution", execution_id=sleeper))["status"] == "cancelled"
    listed = await call(client, "list_executions")
    assert {execution_id, sleeper} <= {entry["execution_id"] for entry in listed["executions"]}
