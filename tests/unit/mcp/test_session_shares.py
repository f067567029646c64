"""SharedSessions behind real tokens: no caller's sessions keep another from opening its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from mcp.server.lowlevel import Server
from pydantic import SecretStr
from starlette.types import Message, Scope

from sandbox_core.domain.ids import Principal
from sandbox_mcp.auth import RequireToken, TokenTable
from sandbox_mcp.session_shares import MAX_OPENING_BYTES, MAX_OPENING_VALUES, SharedSessions

pytestmark = pytest.mark.anyio

NAMES = ("alice", "bob", "carol")
HELLO: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Rig:
    """A manager of at most 5 sessions for three callers, each of whom may so have two."""

    def __init__(self, *, principals: int) -> None:
        self.manager = SharedSessions(
            app=Server("test"), principals=principals, max_sessions=5, session_idle_timeout=1800, json_response=True
        )
        tokens = TokenTable({Principal(name): SecretStr(name) for name in NAMES})
        self._app = RequireToken(self.manager.handle_request, tokens)

    async def ask(
        self, name: str, method: str = "POST", *headers: tuple[bytes, bytes], body: dict[str, Any] = HELLO
    ) -> list[Message]:
        messages: list[Message] = []
        unread: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Message:
            if not unread:
                await anyio.sleep_forever()
            return unread.pop()

        async def send(message: Message) -> None:
            messages.append(message)

        scope: Scope = {
            "type": "http",
            "method": method,
            "path": "/mcp",
            "headers": [
                (b"host", b"localhost"),
                (b"accept", b"application/json, text/event-stream"),
                (b"content-type", b"application/json"),
                (b"authorization", b"Bearer " + name.encode()),
                *headers,
            ],
        }
        await self._app(scope, receive, send)
        return messages

    async def status(self, name: str) -> int:
        return int((await self.ask(name))[0]["status"])


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig(principals=len(NAMES))
    async with made.manager.run():
        yield made


async def test_who_has_its_share_is_told_what_to_do_and_the_others_open_theirs(rig: Rig) -> None:
    assert [await rig.status("alice") for _ in range(3)] == [200, 200, 503]
    assert [await rig.status("bob") for _ in range(3)] == [200, 200, 503]
    assert await rig.status("carol") == 200
    refused = (await rig.ask("alice"))[1]["body"]
    assert json.loads(refused)["error"]["message"].startswith("You have 2 open sessions")
    assert b"DELETE" in refused


async def test_a_session_that_ends_makes_room_for_another(rig: Rig) -> None:
    first, _ = [await rig.ask("alice") for _ in range(2)]
    session = next(value for name, value in first[0]["headers"] if name == b"mcp-session-id")
    ended = await rig.ask("alice", "DELETE", (b"mcp-session-id", session))
    assert ended[0]["status"] == 200
    assert [await rig.status("alice") for _ in range(2)] == [200, 503]


async def test_what_needs_no_session_of_its_own_is_not_counted(rig: Rig) -> None:
    for _ in range(3):
        opened = await rig.ask("alice")
    session = next(value for name, value in (await rig.ask("bob"))[0]["headers"] if name == b"mcp-session-id")
    assert opened[0]["status"] == 503
    assert (await rig.ask("alice", "POST", (b"mcp-session-id", session)))[0]["status"] == 404
    modern = await rig.ask("alice", "POST", (b"mcp-protocol-version", b"2026-07-28"))
    assert modern[0]["status"] == 400


async def test_a_single_caller_may_have_them_all() -> None:
    rig = Rig(principals=1)
    async with rig.manager.run():
        assert [await rig.status("alice") for _ in range(6)] == [200] * 5 + [503]


@pytest.mark.parametrize(
    "abilities",
    [{"text": "x" * MAX_OPENING_BYTES}, {"lists": [[]] * (MAX_OPENING_VALUES + 1)}],
    ids=["bytes", "values"],
)
async def test_what_opens_a_session_is_small_since_it_is_kept_with_it(rig: Rig, abilities: dict[str, Any]) -> None:
    large = {**HELLO, "params": {**HELLO["params"], "capabilities": {"experimental": {"large": abilities}}}}
    refused = await rig.ask("alice", body=large)
    assert refused[0]["status"] == 413
    assert b"opens a session" in refused[1]["body"]
    assert [await rig.status("alice") for _ in range(3)] == [200, 200, 503]


async def test_large_requests_of_a_session_and_of_newer_clients_go_through(rig: Rig) -> None:
    large = {**HELLO, "params": {**HELLO["params"], "capabilities": {"experimental": {"text": {"a": "x" * (1 << 20)}}}}}
    session = next(value for name, value in (await rig.ask("bob"))[0]["headers"] if name == b"mcp-session-id")
    assert (await rig.ask("bob", "POST", (b"mcp-session-id", session), body=large))[0]["status"] == 200
    modern = await rig.ask("alice", "POST", (b"mcp-protocol-version", b"2026-07-28"), body=large)
    assert modern[0]["status"] == 400
