"""What heads may cost the proxy: nothing is kept of those that it refuses, and they leave others their turn."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import anyio
import anyio.lowlevel
import h11
import pytest

from sandbox_adapters.egress.errors import EgressFailure
from sandbox_adapters.egress.http_front import HttpFront
from tests.integration.egress.conftest import BOUND_SECONDS, Serving
from tests.integration.egress.origins import Origin

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.mark.parametrize("where", ["head", "body"])
async def test_what_is_refused_is_not_kept_until_the_client_has_gone(
    serving: Serving, origin: Origin, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[EgressFailure] = []
    refuse = HttpFront.refuse

    async def kept(self: HttpFront, failure: EgressFailure) -> bool:
        refused.append(failure)
        return await refuse(self, failure)

    monkeypatch.setattr(HttpFront, "refuse", kept)
    head = f"POST http://origin.test:{origin.port}/ HTTP/1.1\r\nHost: origin.test:{origin.port}\r\n".encode()
    many = b"x:\r\n" * 10_000 + b"\r\n"
    if where == "body":
        head += b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    async with serving(ports=[origin.port]) as running:
        assert b"400" in await running.talk(head + many)
    (failure,) = refused
    assert (failure.__cause__, failure.__context__) == (None, None), "it keeps every line of what was refused"


async def test_heads_that_come_at_the_same_moment_leave_others_their_turn(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    read: list[int] = []
    take = HttpFront._next_event

    def noted(self: HttpFront) -> object:
        event = take(self)
        if isinstance(event, h11.Request):
            read.append(turn)
        return event

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(HttpFront, "_next_event", noted)
    async with serving() as running, anyio.create_task_group() as tasks:
        clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
        with anyio.fail_after(BOUND_SECONDS), ExitStack() as stack:
            for client in clients:
                stack.enter_context(client)
                client.sendall(b"GET http://refused.example/ HTTP/1.1\r\n")
            while running.proxy.open_connections < len(clients):
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(take_turns)
            # Nothing else runs meanwhile: all of them are there when the proxy looks again.
            for client in clients:
                client.sendall(b"Host: refused.example\r\n\r\n")
            while len(read) < len(clients):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    # Two, since trio runs what is ready in any order.
    assert max(read.count(each) for each in read) <= 2
