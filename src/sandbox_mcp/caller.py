"""Who asks, and what is known of the request that asks: principal, session, era, connection."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import ServerRequestContext
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request

from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, Principal, SessionId, parse_principal, parse_session_id

EXCHANGE_KEY: Final = "sandbox_mcp.exchange"
DEFAULT_SESSION: Final = SessionId("default")
"""The session of callers that name none and have none, so that the session limit holds for them as well."""

_SESSION_HEADER: Final = "mcp-session-id"


@dataclass(slots=True, eq=False)
class Exchange:
    """One HTTP request while it is served. Kept in the ASGI scope under EXCHANGE_KEY."""

    disconnected: anyio.Event = field(default_factory=anyio.Event)
    """Set when the client is seen to be gone, whether or not the protocol makes anything of that."""
    streaming: bool = False
    """True once the answer goes out as an event stream."""
    ending: bool = False
    """True once the last of the response is being sent: its client may have it, and go on, before we do."""
    answered: anyio.Event = field(default_factory=anyio.Event)
    """Set when the response is complete, or given up."""
    handlers: int = 0
    """Calls of this request that are still being handled; an older client's go on after a disconnect."""
    leave: Callable[[], None] | None = None
    """Gives back the place of a large answer, once it is sent or given up; None without one. See LargeAnswers."""
    _afterwards: list[Callable[[], None]] = field(default_factory=list)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Count a handler while the context lasts."""
        self.handlers += 1
        try:
            yield
        finally:
            self.handlers -= 1
            if not self.handlers:
                told, self._afterwards = self._afterwards, []
                for tell in told:
                    tell()

    def when_handled(self, tell: Callable[[], None]) -> None:
        """Call it when the last handler has ended: now, when none is at work."""
        if self.handlers:
            self._afterwards.append(tell)
        else:
            tell()


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of one tool call."""

    principal: Principal
    transport_session: SessionId | None = None
    """The session of an older client's connection, hashed; None for 2026-07-28 and stdio."""
    is_modern: bool = True
    exchange: Exchange | None = None

    def session(self, named: str | None) -> SessionId:
        """Return the session to count in: the one that was named, else the connection's, else the default.

        Raises InvalidArgument for a name that is malformed.
        """
        if named is not None:
            return parse_session_id(named)
        return self.transport_session or DEFAULT_SESSION


def caller_of(ctx: ServerRequestContext[Any, Any]) -> Caller:
    """Return who made this request."""
    is_modern = ctx.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS
    request = ctx.request if isinstance(ctx.request, Request) else None
    exchange = None if request is None else request.scope.get(EXCHANGE_KEY)
    header = None if request is None or is_modern else request.headers.get(_SESSION_HEADER)
    return Caller(
        principal=current_principal(),
        transport_session=None if header is None else _hashed(header),
        is_modern=is_modern,
        exchange=exchange if isinstance(exchange, Exchange) else None,
    )


def current_principal() -> Principal:
    """Return who makes the request that is being served."""
    token = get_access_token()
    if token is None:
        return LOCAL_PRINCIPAL
    try:
        return parse_principal(token.client_id)
    except InvalidArgument as error:
        raise RuntimeError("a verifier let a principal through that is not one") from error


def _hashed(header: str) -> SessionId:
    # The header is what lets an older client speak in its session; lists and logs must not show it.
    return SessionId("mcp-" + hashlib.sha256(header.encode("utf-8", "surrogateescape")).hexdigest()[:24])
