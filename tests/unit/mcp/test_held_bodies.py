"""BoundBody: what the bodies of one caller's unanswered calls may come to."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import pytest
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.types import Message, Receive, Scope, Send

from sandbox_mcp.caller import EXCHANGE_KEY, Exchange
from sandbox_mcp.http_body import HELD_BODIES, SMALL_BODY_BYTES, BoundBody

pytestmark = pytest.mark.anyio

LARGEST = 2 * SMALL_BODY_BYTES
BOUND_SECONDS = 30


class Rig:
    """An application that answers when it is let, and whose handlers end when they are."""

    def __init__(self) -> None:
        self.may_answer = anyio.Event()
        self.abandoned = ExitStack()
        self.leaves_handlers = False
        self._bound = BoundBody(self._serve, max_bytes=LARGEST, timeout_seconds=BOUND_SECONDS)

    async def _serve(self, scope: Scope, _: Receive, send: Send) -> None:
        exchange = scope[EXCHANGE_KEY] = Exchange()
        if self.leaves_handlers:
            self.abandoned.enter_context(exchange.handled())
            return
        with exchange.handled():
            await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def post(self, size: int, answers: list[int], caller: str = "alice") -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"x" * size}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        auth_context_var.set(AuthenticatedUser(AccessToken(token="", client_id=caller, scopes=[])))
        await self._bound({"type": "http", "method": "POST", "headers": []}, receive, send)


async def test_one_caller_may_not_hold_more_and_the_others_and_small_ones_go_on() -> None:
    rig = Rig()
    held: list[int] = []
    others: list[int] = []
    again: list[int] = []
    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(HELD_BODIES):
                tasks.start_soon(rig.post, LARGEST, held)
            await anyio.wait_all_tasks_blocked()
            await rig.post(LARGEST, held)
            assert held == [503]
            tasks.start_soon(rig.post, SMALL_BODY_BYTES, others)
            tasks.start_soon(rig.post, LARGEST, others, "bob")
            await anyio.wait_all_tasks_blocked()
            assert others == []
            rig.may_answer.set()
        assert (others, held) == ([200, 200], [503] + [200] * HELD_BODIES)
        await rig.post(LARGEST, again)
    assert again == [200]


async def test_a_call_that_outlives_its_connection_holds_its_body() -> None:
    rig = Rig()
    answers: list[int] = []
    rig.leaves_handlers = True
    with anyio.fail_after(BOUND_SECONDS), rig.abandoned:
        for _ in range(HELD_BODIES):
            await rig.post(LARGEST, answers)
        assert answers == []
        await rig.post(LARGEST, answers)
        assert answers == [503]
    rig.leaves_handlers = False
    rig.may_answer.set()
    await rig.post(LARGEST, answers)
    assert answers == [503, 200]
