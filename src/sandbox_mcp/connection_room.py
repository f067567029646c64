"""Room for connections: clients, with a token or without, leave the server descriptors for its own work.

Without a bound, whoever reaches the port takes them all with connections that ask nothing: no program starts any more,
and asyncio logs a traceback for each one that it cannot accept, thousands in a second.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import Any, ClassVar, Final

from sandbox_adapters.logging import get_logger
from sandbox_mcp.http_protocol import TimedH11Protocol, timed_protocol

TOLD_EVERY_SECONDS: Final = 60.0
_WITHOUT_LIMIT: Final = 1 << 20

_log = get_logger(__name__)


def most_connections() -> int:
    """Return how many connections may be open at once: half of what this process may have open (`ulimit -n`)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (_WITHOUT_LIMIT if soft == resource.RLIM_INFINITY else soft) // 2)


class SeldomTold:
    """Logs a warning, and the same again only after a minute."""

    def __init__(self) -> None:
        self._told_at: float | None = None

    def tell(self, event: str, **fields: Any) -> None:
        """Log it, or not. For use in an event loop."""
        now = asyncio.get_running_loop().time()
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = now
            _log.warning(event, **fields)


class BoundedProtocol(TimedH11Protocol):
    """Where there are `most_connections` already, ends the oldest that has asked nothing, or else the new one, at once.

    `bounded_protocol` sets the attributes.
    """

    most_connections: int = 1
    news: SeldomTold = SeldomTold()
    silent: ClassVar[OrderedDict[BoundedProtocol, None]] = OrderedDict()
    """Connections in the order in which they came; those that have asked are taken out when room is looked for."""
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take the connection, or end it."""
        if len(self.connections) < self.most_connections or self._make_room():
            self.silent[self] = None
            super().connection_made(transport)
            return
        self._refused = True
        self.asked.set()
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of a connection that was taken."""
        if not self._refused:
            self.silent.pop(self, None)
            super().connection_lost(exc)

    def _make_room(self) -> bool:
        self.news.tell(
            "No room for more connections; raise the limit of open files (ulimit -n) if these are not too many",
            connections=self.most_connections,
        )
        while self.silent:
            oldest, _ = self.silent.popitem(last=False)
            if not oldest.asked.is_set():
                oldest.transport.abort()
                return True
        return False


def bounded_protocol(header_timeout_seconds: float) -> type[BoundedProtocol]:
    """Return the protocol class with its limits set; see most_connections."""
    bounds = {"most_connections": most_connections(), "news": SeldomTold(), "silent": OrderedDict()}
    return type("RoomyProtocol", (BoundedProtocol, timed_protocol(header_timeout_seconds)), bounds)


def tell_seldom_what_is_not_accepted(loop: asyncio.AbstractEventLoop) -> None:
    """Have one warning a minute where asyncio would log a traceback for each connection that it cannot accept."""
    news = SeldomTold()

    def handle(handling: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and context["message"].startswith("socket.accept()"):
            news.tell("A connection cannot be accepted", problem=error.strerror)
        else:
            handling.default_exception_handler(context)

    loop.set_exception_handler(handle)
