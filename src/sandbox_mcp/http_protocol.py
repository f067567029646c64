"""uvicorn's HTTP/1.1 protocol with a time limit on request headers, which uvicorn does not have."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sandbox_mcp.http_writes import OnePieceTransport


class TimedH11Protocol(H11Protocol):
    """Answers 408 and closes when the headers of a request are not complete in time.

    The time runs from the connection, or from the first byte of a later request, and no byte extends it. Class
    attribute so that uvicorn, which makes the instances, needs no more arguments; `timed_protocol` sets it.
    """

    header_timeout_seconds: float = 10.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self.asked = asyncio.Event()
        """Set once the first request began, or none will come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the time for the first request."""
        super().connection_made(OnePieceTransport(transport, self.loop))
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop_header_timer()
        self.asked.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; keep the time running only while headers are incomplete."""
        super().data_received(data)
        if self.cycle is not None:
            self.asked.set()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self._header_timer is None and self.conn.trailing_data[0]:
                self._start_header_timer()
        else:
            self._stop_header_timer()

    def on_response_complete(self) -> None:
        """Start the time again when a part of the next request is waiting already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._header_timer is None:
            self._start_header_timer()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_seconds, self._headers_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


def timed_protocol(header_timeout_seconds: float) -> type[TimedH11Protocol]:
    """Return the protocol class with its time limit set."""
    return type("BoundTimedH11Protocol", (TimedH11Protocol,), {"header_timeout_seconds": header_timeout_seconds})
