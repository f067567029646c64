"""Refusals below the protocol: small JSON answers with a status."""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.types import Send

Header = tuple[bytes, bytes]


async def refuse(
    send: Send, status: int, code: str, message: str, *, headers: Sequence[Header] = (), close: bool = False
) -> None:
    """Answer with `{"error": {"code", "message"}}`.

    Args:
        close: end the connection after the answer; needed when the request's body was not read.
    """
    await answer_json(send, status, {"error": {"code": code, "message": message}}, headers=headers, close=close)


async def answer_json(
    send: Send, status: int, body: object, *, headers: Sequence[Header] = (), close: bool = False
) -> None:
    """Answer with a JSON body."""
    data = json.dumps(body).encode()
    all_headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *headers]
    if close:
        all_headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": data})
