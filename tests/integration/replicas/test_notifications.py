"""Updates of executions as resources cross replicas: whoever listens at one hears of what another one runs."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import (
    EmptyResult,
    ResourceUpdatedNotification,
    SubscribeRequest,
    SubscribeRequestParams,
    TextResourceContents,
    UnsubscribeRequest,
    UnsubscribeRequestParams,
)

from tests.integration.mcp.harness import (
    PATIENCE_SECONDS,
    call,
    connected,
    modern_headers,
    modern_request,
    serving,
    sse_messages,
    until,
)
from tests.integration.replicas.harness import TOKENS, Replica, two_with_tokens
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EVENT_SECONDS = 60.0
UNKNOWN = "execution://01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def patient(replica_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    """Two that wait for what they run when they are stopped; who stops one starts it again."""
    with two_with_tokens(
        replica_redis, tmp_path_factory.mktemp("patient"), SANDBOX_DRAIN_GRACE_SECONDS="600"
    ) as started:
        yield started


class Heard:
    """What a client was notified of."""

    def __init__(self) -> None:
        self.uris: list[str] = []

    async def __call__(self, message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.uris.append(message.params.uri)


@asynccontextmanager
async def caller(
    replica: Replica, name: str = "alice", mode: str = "auto", heard: Heard | None = None
) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {TOKENS[name]}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(120)) as http,
        Client(
            streamable_http_client(replica.url, http_client=http), mode=mode, message_handler=heard, cache=None
        ) as client,
    ):
        yield client


async def started(client: Client, command: str = "cat", *, interactive: bool = True) -> str:
    reply = await call(client, "execute_code_async", command=command, interactive=interactive)
    return str(reply["execution_id"])


async def subscribe(client: Client, uri: str) -> None:
    request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
    await client.session.send_request(request, EmptyResult)


async def unsubscribe(client: Client, uri: str) -> None:
    request = UnsubscribeRequest(params=UnsubscribeRequestParams(uri=uri))
    await client.session.send_request(request, EmptyResult)


async def text_of(client: Client, uri: str) -> str:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    assert content.uri == uri
    return content.text


async def test_a_listener_hears_of_what_another_replica_runs(pair: list[Replica]) -> None:
    here, there = pair
    async with caller(here) as listener, caller(there) as owner:
        execution_id = await started(owner)
        status, output = f"execution://{execution_id}", f"execution://{execution_id}/output"
        await call(owner, "get_execution_output", execution_id=execution_id, wait_seconds=60)
        with anyio.fail_after(EVENT_SECONDS):
            async with listener.listen(resource_subscriptions=[status, output, UNKNOWN, "file:///etc/passwd"]) as news:
                assert news.honored.resource_subscriptions == [status, output]
                for line in ("one\n", "two\n"):
                    await call(owner, "send_stdin", execution_id=execution_id, input_data=line)
                    while not (await text_of(listener, output)).endswith(line):
                        assert isinstance(await anext(news), ResourceUpdated)
                assert json.loads(await text_of(listener, status))["status"] == "running"
                await call(owner, "send_stdin", execution_id=execution_id, input_data="", end=True)
                heard = {event.uri async for event in news if isinstance(event, ResourceUpdated)}
        assert heard == {status, output}
        said = json.loads(await text_of(listener, status))
        assert (said["status"], said["exit_code"]) == ("completed", 0)
        assert await text_of(listener, output) == "one\ntwo\n"


async def test_an_older_session_hears_of_what_another_replica_runs(pair: list[Replica]) -> None:
    here, there = pair
    heard = Heard()
    async with caller(here, mode="legacy", heard=heard) as subscriber, caller(there) as owner:
        assert subscriber.server_capabilities.resources is not None
        assert subscriber.server_capabilities.resources.subscribe
        execution_id = await started(owner)
        output = f"execution://{execution_id}/output"
        await call(owner, "get_execution_output", execution_id=execution_id, wait_seconds=60)
        await subscribe(subscriber, output)
        await subscribe(subscriber, output)
        await call(owner, "send_stdin", execution_id=execution_id, input_data="one\n")
        await until(lambda: heard.uris, "an update comes", EVENT_SECONDS)
        assert await text_of(subscriber, output) == "one\n"
        await unsubscribe(subscriber, output)
        await subscribe(subscriber, f"execution://{execution_id}")
        heard.uris.clear()
        await call(owner, "cancel_execution", execution_id=execution_id, force=True)
        await until(lambda: heard.uris, "the end is told", EVENT_SECONDS)
        assert set(heard.uris) == {f"execution://{execution_id}"}
        assert json.loads(await text_of(subscriber, heard.uris[0]))["status"] == "cancelled"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_what_is_anothers_looks_like_what_is_not_there(pair: list[Replica], mode: str) -> None:
    here, there = pair
    async with caller(there) as owner, caller(here, "bob", mode) as other:
        execution_id = await started(owner)
        for suffix in ("", "/output"):
            foreign, unknown = f"execution://{execution_id}{suffix}", UNKNOWN + suffix
            refusals = []
            for uri in (foreign, unknown):
                with pytest.raises(MCPError) as refused:
                    await other.read_resource(uri)
                assert refused.value.data == {"uri": uri}
                refusals.append((refused.value.code, refused.value.message))
                if mode == "legacy":
                    with pytest.raises(MCPError) as refused:
                        await subscribe(other, uri)
                    refusals.append((refused.value.code, refused.value.message))
            assert len(set(refusals)) == 1
            if mode == "auto":
                async with other.listen(resource_subscriptions=[foreign, unknown]) as news:
                    assert news.honored.resource_subscriptions is None
                    assert [event async for event in news] == []
        assert execution_id not in str(await other.list_resources())
        await call(owner, "cancel_execution", execution_id=execution_id, force=True)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_list_has_ones_own_newest_first_in_pages(pair: list[Replica], mode: str) -> None:
    here, there = pair
    async with caller(here, "bob", mode) as client, caller(there, "bob") as owner:
        ids = [await started(owner, "true", interactive=False) for _ in range(60)]
        listed: list[str] = []
        cursor: str | None = None
        while True:
            page = await client.list_resources(cursor=cursor)
            assert len(page.resources) <= 100
            listed += [entry.uri for entry in page.resources]
            cursor = page.next_cursor
            if cursor is None:
                break
        newest = [uri for execution_id in reversed(ids) for uri in uris_of(execution_id)]
        assert listed[:120] == newest
        with pytest.raises(MCPError):
            await client.list_resources(cursor="../execution:1")
        templates = (await client.list_resource_templates()).resource_templates
        assert [entry.uri_template for entry in templates] == [
            "execution://{execution_id}",
            "execution://{execution_id}/output",
        ]


def uris_of(execution_id: str) -> tuple[str, str]:
    return f"execution://{execution_id}", f"execution://{execution_id}/output"


async def test_much_output_is_told_about_once_a_second_and_its_tail_is_bounded(pair: list[Replica]) -> None:
    here, there = pair
    printing = "for i in 1 2 3 4 5 6 7 8; do head -c 20000 /dev/zero | tr '\\0' x; sleep 0.3; done; echo; echo last"
    async with caller(here) as listener, caller(there) as owner:
        execution_id = await started(owner, printing, interactive=False)
        output = f"execution://{execution_id}/output"
        began, updates = time.monotonic(), 0
        with anyio.fail_after(2 * EVENT_SECONDS):
            async with listener.listen(resource_subscriptions=[output]) as news:
                async for _ in news:
                    updates += 1
        assert 1 <= updates <= time.monotonic() - began + 3
        text = await text_of(listener, output)
        assert text.endswith("x\nlast\n")
        assert text.startswith("[... earlier output")
        assert len(text) < 80_000


async def test_a_replica_that_drains_ends_its_streams_at_once_and_others_serve_on(patient: list[Replica]) -> None:
    leaving, staying = patient
    try:
        async with caller(leaving) as listener, caller(staying) as owner:
            execution_id = await started(listener)
            output = f"execution://{execution_id}/output"
            await call(owner, "get_execution_output", execution_id=execution_id, wait_seconds=60)
            with anyio.fail_after(EVENT_SECONDS):
                async with listener.listen(resource_subscriptions=[output]) as news:
                    leaving.process.send_signal(signal.SIGTERM)
                    async for _ in news:
                        pass
                assert leaving.process.poll() is None
                async with owner.listen(resource_subscriptions=[output]) as news:
                    await call(owner, "send_stdin", execution_id=execution_id, input_data="on\n", end=True)
                    async for _ in news:
                        pass
                assert await text_of(owner, output) == "on\n"
        assert await to_thread.run_sync(lambda: leaving.process.wait(PATIENCE_SECONDS)) == 0
    finally:
        leaving.close()
        leaving.start_again()
        leaving.wait_ready()


async def test_a_replica_alone_tells_the_end_before_it_goes(tmp_path: Path) -> None:
    with serving(tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="600") as served:
        async with connected(served.url) as client:
            execution_id = await started(client)
            uri = f"execution://{execution_id}"
            with anyio.fail_after(EVENT_SECONDS):
                async with client.listen(resource_subscriptions=[uri]) as news:
                    served.process.send_signal(signal.SIGTERM)
                    await until(lambda: served.health().status_code == 503, "it drains")
                    await call(client, "cancel_execution", execution_id=execution_id, force=True)
                    assert [event.uri async for event in news if isinstance(event, ResourceUpdated)][-1] == uri
        assert await to_thread.run_sync(lambda: served.process.wait(PATIENCE_SECONDS)) == 0


async def test_listeners_that_do_not_read_slow_nobody_and_do_not_keep_the_server(
    patient: list[Replica],
) -> None:
    here, there = patient
    try:
        async with caller(there) as owner, caller(here) as other:
            ids = [await started(owner, "head -c 100000 /dev/zero | tr '\\0' x", interactive=False) for _ in range(24)]
            await call(owner, "get_execution_output", execution_id=ids[-1], wait=True, wait_seconds=60)
            with not_reading(here, ids):
                execution_id = await started(owner)
                output = f"execution://{execution_id}/output"
                with anyio.fail_after(EVENT_SECONDS):
                    async with other.listen(resource_subscriptions=[output]) as news:
                        await call(owner, "send_stdin", execution_id=execution_id, input_data="on\n")
                        while "on\n" not in await text_of(other, output):
                            await anext(news)
                await call(owner, "cancel_execution", execution_id=execution_id, force=True)
                assert await to_thread.run_sync(here.stop) == 0
    finally:
        here.close()
        here.start_again()
        here.wait_ready()


class not_reading:  # noqa: N801  # reads as the context that it is
    """A client whose stream of whole tasks is far larger than what fits on the way, and who takes none of it."""

    def __init__(self, replica: Replica, ids: list[str]) -> None:
        self._port = replica.port
        self._body = json.dumps(task_listening(ids)).encode()

    def __enter__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(EVENT_SECONDS)
        self._socket.connect(("127.0.0.1", self._port))
        headers = {**modern_headers("subscriptions/listen"), "Authorization": f"Bearer {TOKENS['alice']}"}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nContent-Length: {len(self._body)}\r\n"
        self._socket.sendall((head + "".join(lines) + "\r\n").encode() + self._body)
        assert self._socket.recv(12) == b"HTTP/1.1 200"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def task_listening(ids: list[str]) -> dict[str, Any]:
    request = modern_request("subscriptions/listen", {"notifications": {"taskIds": ids}})
    capabilities: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    request["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities
    return request


async def test_a_stream_has_a_bound(pair: list[Replica]) -> None:
    uris = [f"execution://01900000-0000-7000-8000-{number:012x}" for number in range(65)]
    headers = {**modern_headers("subscriptions/listen"), "Authorization": f"Bearer {TOKENS['alice']}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        for count, status in ((65, 400), (64, 200)):
            body = modern_request("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris[:count]}})
            answer = await http.post(pair[0].url, json=body)
            assert answer.status_code == status, answer.text
        first, last = sse_messages(answer.text)
        assert first["method"] == "notifications/subscriptions/acknowledged"
        assert last["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 1
