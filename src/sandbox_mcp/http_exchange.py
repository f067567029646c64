"""What is known of each request while it is served: whether its client is gone, and which ids are in use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox_mcp.caller import EXCHANGE_KEY, Exchange
from sandbox_mcp.http_answers import answer_compactly, is_stream
from sandbox_mcp.http_errors import refuse

_SESSION_HEADER = b"mcp-session-id"
_PIECE_BYTES = 1024 * 1024
_ENDING_SECONDS = 5
"""How long a request waits for the end of one with its id whose answer is on its way out already."""


class InFlight:
    """Counts requests that are being served, so that a shutdown can wait for their answers."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = anyio.Event()
        self._idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request while the context lasts."""
        if self._count == 0:
            self._idle = anyio.Event()
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no request is being served."""
        while self._count:
            await self._idle.wait()


class TrackExchanges:
    """ASGI wrapper around the protocol: puts an Exchange into the scope, counts, and keeps ids apart.

    In an older session the SDK would hand the answer of the first of two requests with one id to the second
    connection, so the second is refused while the first runs (JSON-RPC wants ids to be unique while in use).
    """

    def __init__(self, app: ASGIApp, in_flight: InFlight) -> None:
        self._app = app
        self._in_flight = in_flight
        self._used: dict[tuple[bytes, str], Exchange] = {}

    def __len__(self) -> int:
        """Return how many ids are in use."""
        return len(self._used)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange()
        scope[EXCHANGE_KEY] = exchange

        async def watch() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.disconnected.set()
            return message

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.streaming = is_stream(message)
            elif message["type"] == "http.response.body":
                message = await _send_most(message, send)
                exchange.ending = not message.get("more_body", False)
            await send(message)

        session = next((value for name, value in scope["headers"] if name == _SESSION_HEADER), None)
        try:
            if scope["method"] != "POST":
                await self._app(scope, watch, note)
            elif session is None:
                with self._in_flight.counted():
                    await self._app(scope, watch, note)
            else:
                await self._in_session(session, exchange, scope, watch, note)
        finally:
            exchange.answered.set()
            if exchange.leave is not None:
                exchange.leave()

    async def _in_session(self, session: bytes, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()
        request = _request(first.get("body", b""))
        key = None if request is None else (session, str(request["id"]))

        async def replay() -> Message:
            nonlocal first
            message, first = first, {}
            return message or await receive()

        if key is not None:
            other = self._used.get(key)
            if other is not None and other.ending:
                with anyio.move_on_after(_ENDING_SECONDS):
                    await other.answered.wait()
                other = self._used.get(key)
            if other is not None and (not other.answered.is_set() or other.handlers):
                await refuse(
                    send, 409, "duplicate_request_id", "A request with this id is still running in this session."
                )
                return
            self._used[key] = exchange
        try:
            with self._in_flight.counted():
                if request is None or _wants_progress(request):
                    await self._app(scope, replay, send)
                else:
                    await answer_compactly(self._app, scope, replay, send)
        finally:
            exchange.answered.set()
            if key is not None:
                exchange.when_handled(partial(self._free, key, exchange))

    def _free(self, key: tuple[bytes, str], exchange: Exchange) -> None:
        if self._used.get(key) is exchange:
            del self._used[key]


async def _send_most(message: Message, send: Send) -> Message:
    """Send a long body in pieces as its client takes them; return its end, to be sent."""
    body = message.get("body", b"")
    if len(body) <= _PIECE_BYTES:
        return message
    unsent = memoryview(body)
    while len(unsent) > _PIECE_BYTES:
        await send({**message, "body": bytes(unsent[:_PIECE_BYTES]), "more_body": True})
        unsent = unsent[_PIECE_BYTES:]
    return {**message, "body": bytes(unsent)}


def _request(body: bytes) -> dict[str, Any] | None:
    """Return a JSON-RPC request; None for anything else."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or "method" not in message or "id" not in message:
        return None
    return message


def _wants_progress(request: dict[str, Any]) -> bool:
    params = request.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return isinstance(meta, dict) and "progressToken" in meta
