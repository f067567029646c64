"""Request bodies: bounded in size and in time, read before anything else happens."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import Any, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox_core.domain.ids import Principal
from sandbox_mcp.caller import EXCHANGE_KEY, Exchange, current_principal
from sandbox_mcp.http_errors import refuse

MAX_VALUES = 1 << 17
"""In the lists and objects of a body. Tools take a few thousand; and whoever checks a body's types makes, of each value
that has another, an error of half a kilobyte before telling the first."""

SMALL_BODY_BYTES: Final = 64 * 1024
"""Bodies up to this are not counted."""

HELD_BODIES: Final = 16
"""How many bodies of the largest size the unanswered calls of one caller may have together. A call keeps its body, and
what was read of it, until it is answered; an older client's does so also after its connection."""


class BoundBody:
    """ASGI wrapper: 413 for a body over the limit, declared or sent; 408 for one that does not come in time.

    413 also for one of more than MAX_VALUES values. 503 while the caller's unanswered calls hold too much.

    400 for one with two lengths (RFC 9112, section 6.1).

    Args:
        max_bytes: largest body.
        timeout_seconds: for the whole body, from its headers on.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._held: Counter[Principal] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        names = {name for name, _ in scope["headers"]}
        if b"content-length" in names and b"transfer-encoding" in names:
            # A proxy before us may have read the other length, and what follows as a request of its own.
            await refuse(
                send, 400, "invalid_request", "Send Content-Length or Transfer-Encoding, not both.", close=True
            )
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(declared) > self._max_bytes:
            await self._too_large(send)
            return
        body = bytearray()
        with anyio.move_on_after(self._timeout_seconds) as bound:
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                body += message.get("body", b"")
                if len(body) > self._max_bytes:
                    await self._too_large(send)
                    return
                if not message.get("more_body", False):
                    break
        if bound.cancelled_caught:
            await refuse(
                send, 408, "body_timeout", f"The body did not arrive in {self._timeout_seconds:g} s.", close=True
            )
            return
        if has_too_many_values(body):
            text = (
                f"The lists and objects of a body may have {MAX_VALUES} values. Send long texts as one, e.g. as stdin."
            )
            await refuse(send, 413, "too_many_values", text)
            return
        size, replay = len(body), _Replay(bytes(body), receive)
        del body, message  # a call may wait for an hour
        if size <= SMALL_BODY_BYTES:
            await self._app(scope, replay, send)
            return
        principal = current_principal()
        if self._held[principal] + size > HELD_BODIES * self._max_bytes:
            text = "Your unanswered calls have sent as much as one caller's may. Wait for an answer of one of them."
            await refuse(send, 503, "server_full", text, headers=[(b"retry-after", b"10")])
            return
        self._held[principal] += size
        try:
            await self._app(scope, replay, send)
        finally:
            exchange = scope.get(EXCHANGE_KEY)
            let_go = partial(self._let_go, principal, size)
            if isinstance(exchange, Exchange):
                exchange.when_handled(let_go)
            else:
                let_go()

    def _let_go(self, principal: Principal, size: int) -> None:
        self._held[principal] -= size
        if not self._held[principal]:
            del self._held[principal]

    async def _too_large(self, send: Send) -> None:
        await refuse(send, 413, "body_too_large", f"A body may have {self._max_bytes} bytes.", close=True)


def has_too_many_values(body: bytes | bytearray, most: int = MAX_VALUES) -> bool:
    """True for JSON with more than `most` values; what is not JSON is told by who reads it."""
    # Commas stand between values, also where texts have some: few of them are few values, without a second reading.
    if body.count(b",") < most // 2:
        return False
    try:
        # Takes all that either of the SDK's two readers takes, half a surrogate pair among it.
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    seen = 0
    while waiting and seen <= most:
        value = waiting.pop()
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            seen += len(value)
            if seen <= most:
                waiting += value
    return seen > most


class _Replay:
    """Gives the body that was read, then whatever else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return message if message is not None else await self._receive()
