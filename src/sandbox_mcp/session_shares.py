"""Sessions of older clients, shared out among the callers."""

from __future__ import annotations

from typing import Any, Final

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import Message, Receive, Scope, Send

from sandbox_core.application.admission import share_of_one
from sandbox_mcp.caller import current_principal
from sandbox_mcp.http_body import has_too_many_values
from sandbox_mcp.http_errors import refuse

MAX_OPENING_BYTES: Final = 64 * 1024
MAX_OPENING_VALUES: Final = 1024
"""What opens a session is kept as long as the session is, also where it was refused: names, icons and abilities of a
client. In lists and objects it is forty times as much memory."""


class SharedSessions(StreamableHTTPSessionManager):
    """The SDK's manager, where the sessions of all callers but one leave that one room for its own.

    Args:
        principals: how many callers there can be.
        max_sessions: open at once.
        options: the SDK's others.
    """

    def __init__(self, *, principals: int, max_sessions: int, **options: Any) -> None:
        super().__init__(max_sessions=max_sessions, **options)
        self._most_of_one = share_of_one(max_sessions, principals)

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._would_open(scope) and not self._has_room():
            what = f"You have {self._most_of_one} open sessions, as many as one caller may. End some (DELETE) or wait: "
            await refuse(send, 503, "server_full", f"{what}unused ones end after {self.session_idle_timeout:g} s.")
        elif scope["method"] == "POST" and self._would_open(scope):
            await self._open(scope, receive, send)
        else:
            await super().handle_request(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await receive()  # the whole body: see BoundBody
        body = first.get("body", b"")
        if len(body) > MAX_OPENING_BYTES or has_too_many_values(body, MAX_OPENING_VALUES):
            what = f"What opens a session may have {MAX_OPENING_BYTES} bytes, and {MAX_OPENING_VALUES} values in lists"
            await refuse(send, 413, "body_too_large", f"{what} and objects. Other requests name their session.")
            return
        unread = [first]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await super().handle_request(scope, replay, send)

    def _would_open(self, scope: Scope) -> bool:
        if self.stateless:
            return False
        headers = dict(scope["headers"])
        version = headers.get(b"mcp-protocol-version")
        is_older = version is None or version.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS
        return is_older and b"mcp-session-id" not in headers

    def _has_room(self) -> bool:
        if len(self._session_owners) < self._most_of_one:
            return True
        principal = current_principal()
        return sum(owner["client_id"] == principal for owner in self._session_owners.values()) < self._most_of_one
