"""The Tasks extension: a call that takes long becomes a task, and any replica answers for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Request, RequestParams, Result

from tests.integration.mcp.harness import modern_headers, modern_request, older_session, structured, text, until
from tests.integration.replicas.harness import TOKENS, Replica
from tests.integration.replicas.test_notifications import task_listening

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EXTENSION = "io.modelcontextprotocol/tasks"
EVENT_SECONDS = 80.0
LONG = "echo started; sleep 600"
UNKNOWN = "01900000-0000-7000-8000-000000000000"


class Wire:
    """A client that writes its own requests."""

    def __init__(self, http: httpx2.AsyncClient, *, declares: bool = True) -> None:
        self._http = http
        self._declares = declares

    async def ask(
        self, replica: Replica, method: str, header_name: str | None = None, /, **params: Any
    ) -> dict[str, Any]:
        """Return the whole JSON-RPC answer."""
        answer = await self._http.post(
            replica.url, json=self.request(method, params), headers=modern_headers(method, header_name)
        )
        said = answer.json()
        assert isinstance(said, dict)
        return said

    async def run(self, replica: Replica, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of execute_code."""
        call = {"name": "execute_code", "arguments": {"command": command, **arguments}}
        result = (await self.ask(replica, "tools/call", "execute_code", **call))["result"]
        assert isinstance(result, dict)
        return result

    async def task(self, replica: Replica, task_id: str) -> dict[str, Any]:
        """Return what tasks/get says."""
        result = (await self.ask(replica, "tasks/get", task_id, taskId=task_id))["result"]
        assert isinstance(result, dict)
        return result

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        request = modern_request(method, params)
        if self._declares:
            capabilities: dict[str, Any] = {"extensions": {EXTENSION: {}}}
            request["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities
        return request


@asynccontextmanager
async def http_of(name: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKENS[name]}"}, timeout=120) as http:
        yield http


async def test_what_is_quick_is_answered_and_what_is_not_becomes_a_task(pair: list[Replica]) -> None:
    here, there = pair
    async with http_of("alice") as http:
        wire = Wire(http)

        async def answered() -> dict[str, Any] | None:
            said = await wire.run(here, "echo hello")
            return None if said["resultType"] == "task" else said

        # On a busy machine not even this is quick at once.
        quick = await until(answered, "it is quick", EVENT_SECONDS)
        assert (quick["resultType"], quick["structuredContent"]["stdout"]) == ("complete", "hello\n")
        task = await wire.run(here, "read line; echo got $line", interactive=True)
        assert (task["resultType"], task["status"], task["ttlMs"]) == ("task", "working", None)
        assert (await wire.task(there, task["taskId"]))["status"] == "working"
        fed = {"name": "send_stdin", "arguments": {"execution_id": task["taskId"], "input_data": "it\n"}}
        assert "result" in await wire.ask(there, "tools/call", "send_stdin", **fed)

        async def ended() -> dict[str, Any] | None:
            now = await wire.task(there, task["taskId"])
            return None if now["status"] == "working" else now

        done = await until(ended, "the task ends", EVENT_SECONDS)
        assert (done["resultType"], done["status"]) == ("complete", "completed")
        assert done["ttlMs"] > 3_600_000
        assert done["result"]["structuredContent"]["stdout"] == "got it\n"
        assert done["result"]["structuredContent"]["execution_id"] == task["taskId"]
        assert done["result"]["isError"] is False


async def test_a_task_is_cancelled_through_another_replica_and_those_who_listen_are_told(pair: list[Replica]) -> None:
    here, there = pair
    async with http_of("alice") as http:
        wire = Wire(http)
        task_id = (await wire.run(here, LONG))["taskId"]
        with anyio.fail_after(EVENT_SECONDS):
            frames = stream_of(http, there, [task_id, UNKNOWN, "no id"])
            acknowledged = await anext(frames)
            assert acknowledged["params"]["notifications"] == {"taskIds": [task_id]}
            now = await anext(frames)
            assert (now["method"], now["params"]["status"]) == ("notifications/tasks", "working")
            assert now["params"]["ttlMs"] is None
            said = await wire.ask(here, "tasks/cancel", task_id, taskId=task_id)
            assert said["result"]["resultType"] == "complete"
            rest = [frame async for frame in frames]
        assert rest[-2]["params"]["status"] == "cancelled"
        assert rest[-2]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 1
        assert rest[-1]["result"]["resultType"] == "complete"
        assert (await wire.task(there, task_id))["status"] == "cancelled"
        again = await wire.ask(there, "tasks/cancel", task_id, taskId=task_id)
        assert again["result"]["resultType"] == "complete"


async def test_a_result_comes_with_the_notification(pair: list[Replica]) -> None:
    here, there = pair
    async with http_of("alice") as http:
        wire = Wire(http)
        task_id = (await wire.run(here, "sleep 2; head -c 300000 /dev/zero"))["taskId"]
        with anyio.fail_after(EVENT_SECONDS):
            frames = [frame async for frame in stream_of(http, there, [task_id])]
        told = frames[-2]["params"]
        kept = await wire.task(here, task_id)
        assert told["result"] == kept["result"]
        assert told["result"]["structuredContent"]["truncation"]["omitted_bytes"] > 0


async def stream_of(
    http: httpx2.AsyncClient, replica: Replica, task_ids: Sequence[str]
) -> AsyncIterator[dict[str, Any]]:
    body, headers = task_listening(list(task_ids)), modern_headers("subscriptions/listen")
    async with http.stream("POST", replica.url, json=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield httpx2.Response(200, content=line[6:]).json()


async def test_nobody_else_sees_or_ends_a_task(pair: list[Replica]) -> None:
    here, there = pair
    async with http_of("alice") as http, http_of("bob") as others:
        wire, other = Wire(http), Wire(others)
        task_id = (await wire.run(here, LONG))["taskId"]
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            said = []
            for asked in (task_id, UNKNOWN):
                error = (await other.ask(there, method, asked, taskId=asked, inputResponses={}))["error"]
                assert error["code"] == -32602
                said.append(str(error).replace(asked, "ID"))
            assert said[0] == said[1]
        with anyio.fail_after(EVENT_SECONDS):
            frames = [frame async for frame in stream_of(others, there, [task_id])]
        assert frames[0]["params"]["notifications"] == {}
        assert len(frames) == 2
        assert (await wire.task(there, task_id))["status"] == "working"
        assert (await wire.ask(here, "tasks/cancel", task_id, taskId=task_id))["result"]


async def test_only_who_declares_the_extension_sees_it(pair: list[Replica]) -> None:
    here, _ = pair
    async with http_of("alice") as http:
        plain, wire = Wire(http, declares=False), Wire(http)
        assert (await plain.run(here, "sleep 1.5; echo waited"))["structuredContent"]["stdout"] == "waited\n"
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            error = (await plain.ask(here, method, UNKNOWN, taskId=UNKNOWN, inputResponses={}))["error"]
            assert error["code"] == -32021
            assert error["data"]["requiredCapabilities"]["extensions"] == {EXTENSION: {}}
        listening = {"notifications": {"taskIds": [UNKNOWN]}}
        assert (await plain.ask(here, "subscriptions/listen", **listening))["error"]["code"] == -32021
        assert (await wire.ask(here, "tasks/list"))["error"]["code"] == -32601
        assert (await wire.ask(here, "tasks/get", "another", taskId=UNKNOWN))["error"]["code"] == -32020
        discovered = (await plain.ask(here, "server/discover"))["result"]["capabilities"]
        assert EXTENSION in discovered["extensions"]
        assert "tasks" not in discovered

        session = await older_session(http, here.url)
        asked = {"jsonrpc": "2.0", "id": 5, "method": "tasks/get", "params": {"taskId": UNKNOWN}}
        assert "-32601" in (await http.post(here.url, json=asked, headers=session)).text


class TaskResult(Result):
    """A call that became a task."""

    result_type: Literal["task"]
    task_id: str


class TaskParams(RequestParams):
    task_id: str


class GetTask(Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams
    name_param = "taskId"


class TaskState(Result):
    status: str
    result: dict[str, Any] | None = None


class TasksClient(ClientExtension):
    """What a client that knows tasks does: ask until it is done."""

    identifier = EXTENSION

    def __init__(self, elsewhere: Client) -> None:
        self._elsewhere = elsewhere
        self.seen: list[str] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=TaskResult, resolve=self._finish)]

    async def _finish(self, task: TaskResult, _: ClaimContext) -> CallToolResult:
        self.seen.append(task.task_id)
        while True:
            await anyio.sleep(0.1)
            state = await self._elsewhere.session.send_request(
                GetTask(params=TaskParams(task_id=task.task_id)), TaskState
            )
            if state.status != "working":
                return CallToolResult.model_validate(state.result)


async def test_the_official_client_finishes_a_task_at_another_replica(pair: list[Replica]) -> None:
    here, there = pair
    async with http_of("alice") as http:
        elsewhere = Client(streamable_http_client(there.url, http_client=http), extensions=[TasksClient(None)])  # type: ignore[arg-type]  # it asks for no tool
        async with elsewhere:
            extension = TasksClient(elsewhere)
            async with Client(streamable_http_client(here.url, http_client=http), extensions=[extension]) as client:
                result = await client.call_tool("execute_code", {"command": "sleep 2; echo done; exit 3"})
        assert (structured(result)["stdout"], structured(result)["exit_code"]) == ("done\n", 3)
        assert "done" in text(result)
        assert extension.seen == [structured(result)["execution_id"]]
