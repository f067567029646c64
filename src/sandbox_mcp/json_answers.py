"""Answers in one JSON document for clients that accept no event stream, as curl may."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

import anyio
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import Message, Receive, Scope, Send

from sandbox_mcp.session_shares import SharedSessions

_VERSION_HEADER: Final = b"mcp-protocol-version"
_wants_json: Final[ContextVar[bool]] = ContextVar("_wants_json", default=False)


class AsAccepted(SharedSessions):
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
        wants_json = b"application/json" in accepted and b"text/event-stream" not in accepted
        before = _wants_json.set(wants_json)
        try:
            if wants_json and scope["method"] == "POST":
                await self._answer_watched(scope, receive, send)
            else:
                await super().handle_request(scope, receive, send)
        finally:
            _wants_json.reset(before)

    async def _answer_watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and see its client go, which the SDK does only where it answers with an event stream.

        That cancels a request that stands alone; in a session it is only noted, by whoever made `receive`.
        """
        unread = [await receive()]  # the whole body: see BoundBody
        versions = {value.decode("latin-1") for name, value in scope["headers"] if name == _VERSION_HEADER}
        stands_alone = self.stateless or not versions <= set(HANDSHAKE_PROTOCOL_VERSIONS)

        async def replay() -> Message:
            if not unread:
                await anyio.sleep_forever()  # until this is cancelled: there is nothing more to receive
            return unread.pop()

        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if stands_alone:
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await super().handle_request(scope, replay, send)
            tasks.cancel_scope.cancel()


class StandaloneRequests(AsAccepted):
    """Without sessions: every request stands alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stateless=True, **options)
