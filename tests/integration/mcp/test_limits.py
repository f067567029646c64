"""Places, the wait queue, and fairness between principals, over HTTP."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from tests.integration.mcp.harness import PATIENCE_SECONDS, Served, call, connected, refusal, serving, until

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def sleeper(mark: str) -> list[str]:
    return ["sh", "-c", "sleep 1000; true", mark]


async def start(client: Client, mark: str, **more: Any) -> str:
    started = await call(client, "execute_code_async", command=sleeper(mark), timeout_seconds=300, **more)
    return str(started["execution_id"])


async def statuses(client: Client) -> list[str]:
    return [entry["status"] for entry in (await call(client, "list_executions"))["executions"]]


async def test_places_the_queue_and_what_is_past_it(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with serving(tmp_path, SANDBOX_MAX_CONCURRENT="2", SANDBOX_MAX_PER_SESSION="2", SANDBOX_MAX_QUEUED="1") as served:
        async with connected(served.url) as client, connected(served.url, "legacy") as older:
            first = await start(client, mark, session_id="a")
            await start(older, mark)
            await until(lambda: served.running() == 2, "two run")
            await start(client, mark, session_id="b")
            error = await refusal(client, "execute_code", command="true", session_id="c")
            assert error["code"] == "server_full"
            assert error["retry_after_seconds"] >= 1
            assert served.running() == 2
            assert served.health().json()["queued"] == 1
            await call(client, "cancel_execution", execution_id=first, force=True)

            async def moved_up() -> bool:
                return (await statuses(client)).count("running") == 2

            await until(moved_up, "the waiting one starts")


async def test_calls_at_once_have_all_free_places_and_the_queue_behind_them(tmp_path: Path) -> None:
    mark, answers = f"mark-{uuid.uuid4().hex}", []
    with serving(tmp_path, SANDBOX_MAX_CONCURRENT="3", SANDBOX_MAX_QUEUED="1") as served:
        async with connected(served.url) as client:

            async def one() -> None:
                asked = {"command": sleeper(mark), "timeout_seconds": 300}
                answers.append((await client.call_tool("execute_code_async", asked)).is_error)

            async with anyio.create_task_group() as tasks:
                for _ in range(7):
                    tasks.start_soon(one)
            assert sorted(answers) == [False] * 4 + [True] * 3
            await until(lambda: served.running() == 3, "three run")


async def test_one_session_holds_only_its_share(tmp_path: Path) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    with serving(tmp_path, SANDBOX_MAX_CONCURRENT="4", SANDBOX_MAX_PER_SESSION="1") as served:
        async with connected(served.url) as client:
            await start(client, mark)
            waiting = await start(client, mark)
            said = await call(client, "execute_code", command="echo other", session_id="other")
            assert said["stdout"] == "other\n"
            assert (await call(client, "get_execution_status", execution_id=waiting))["status"] == "pending"
            cancelled = await call(client, "cancel_execution", execution_id=waiting)
            assert (cancelled["was_running"], cancelled["status"]) == (True, "cancelled")


async def test_one_principal_cannot_starve_another(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"greedy": "token-of-greedy", "modest": "token-of-modest"}))
    tokens.chmod(0o600)
    mark = f"mark-{uuid.uuid4().hex}"
    limits = {"SANDBOX_MAX_CONCURRENT": "3", "SANDBOX_MAX_PER_SESSION": "3", "SANDBOX_MAX_QUEUED": "6"}
    with serving(tmp_path, SANDBOX_AUTH_TOKENS_FILE=str(tokens), **limits) as served:
        async with (
            connected(served.url, token="token-of-greedy") as greedy,
            connected(served.url, token="token-of-modest") as modest,
        ):
            refused = 0
            for number in range(12):
                arguments = {"command": sleeper(mark), "session_id": f"s{number}", "timeout_seconds": 300}
                refused += bool((await greedy.call_tool("execute_code_async", arguments)).is_error)
            assert refused > 0
            with anyio.fail_after(PATIENCE_SECONDS):
                assert (await call(modest, "execute_code", command="echo mine"))["stdout"] == "mine\n"


async def test_many_clients_at_once_never_pass_the_limit(server: Served) -> None:
    seen: list[int] = []
    limit = server.health().json()["capacity"]

    async def one(client: Client, number: int) -> None:
        said = await call(client, "execute_code", command="sleep 0.05; echo ok", session_id=f"many-{number % 7}")
        assert said["stdout"] == "ok\n"
        seen.append(server.running())

    async with connected(server.url) as client, anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(one, client, number)
    assert max(seen) <= limit
