"""Answers to older clients as plain JSON where that is possible.

The SDK answers every request of an older session as an event stream, and its own client refuses events over 1 MiB. A
request without a progress token has nothing to stream, so its answer is turned into a JSON body (MCP 2025-11-25,
section Transports, lets a server choose), unless it takes so long that the connection must show signs of life.
"""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOLD_SECONDS = 12.0
"""How long a stream is held back; after that it is passed on, with the pings that keep proxies from closing it."""

_STREAM = b"text/event-stream"


def is_stream(message: Message) -> bool:
    """True for the start of a response that is an event stream."""
    return any(name.lower() == b"content-type" and value.startswith(_STREAM) for name, value in message["headers"])


async def answer_compactly(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request; an event stream of a single message becomes a JSON body."""
    held = _Held(send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(held.release_late)
        await app(scope, receive, held.send)
        tasks.cancel_scope.cancel()


class _Held:
    """The send side of one response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = anyio.Lock()
        self._start: Message | None = None
        self._chunks: list[bytes] = []

    async def send(self, message: Message) -> None:
        async with self._lock:
            if message["type"] == "http.response.start" and is_stream(message):
                self._start = message
            elif self._start is None:
                await self._send(message)
            else:
                self._chunks.append(message.get("body", b""))
                if not message.get("more_body", False):
                    await self._finish(self._start)

    async def release_late(self) -> None:
        await anyio.sleep(HOLD_SECONDS)
        async with self._lock:
            if self._start is not None:
                await self._send(self._start)
                self._start = None
                await self._send({"type": "http.response.body", "body": b"".join(self._chunks), "more_body": True})

    async def _finish(self, start: Message) -> None:
        self._start = None
        body = b"".join(self._chunks)
        messages = [line[6:] for line in body.splitlines() if line.startswith(b"data: ") and len(line) > 6]
        if len(messages) == 1:
            body = messages[0]
            dropped = {b"content-type", b"content-length", b"transfer-encoding"}
            kept = [(name, value) for name, value in start["headers"] if name.lower() not in dropped]
            length = str(len(body)).encode()
            start = {**start, "headers": [*kept, (b"content-type", b"application/json"), (b"content-length", length)]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
