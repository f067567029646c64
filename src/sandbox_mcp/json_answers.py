"""Answers in one JSON document for clients that accept no event stream, as curl may."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Receive, Scope, Send

_wants_json: Final[ContextVar[bool]] = ContextVar("_wants_json", default=False)


class AsAccepted(StreamableHTTPSessionManager):
    """The SDK's manager, where each request that stands alone chooses the form of its answer.

    A session has the form that the request which opened it accepts: one that was opened without event streams is
    answered in JSON to its end.
    """

    @property
    def json_response(self) -> bool:  # read by the SDK once for each request that stands alone, and for each session
        """Whether the request at hand accepts JSON and no event stream."""
        return _wants_json.get()

    @json_response.setter
    def json_response(self, _: bool) -> None:
        """The SDK's constructor sets it; here the client does."""

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        accepted = b",".join(value for name, value in scope["headers"] if name == b"accept").lower()
        before = _wants_json.set(b"application/json" in accepted and b"text/event-stream" not in accepted)
        try:
            await super().handle_request(scope, receive, send)
        finally:
            _wants_json.reset(before)


class StandaloneRequests(AsAccepted):
    """Without sessions: every request stands alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stateless=True, **options)
