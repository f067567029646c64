"""OnePieceTransport: head and body of an HTTP/1.1 response in one write, and an end for clients that never read."""

from __future__ import annotations

import asyncio
from typing import Any

_HEAD = b"HTTP/1."
UNREAD_SECONDS = 120.0
"""How long a client may take nothing of what waits for it, before its connection is ended."""
_MOST_JOINED_BYTES = 64 * 1024
"""Joining copies, so a long piece of a body follows the head in a write of its own."""


class OnePieceTransport(asyncio.Transport):
    """Passes everything on to another transport, but holds the head of a response back for the rest of the turn.

    uvicorn writes a head and what follows it one after the other, at once: two packets, and a client that wakes for
    each. The body goes along with the head here; a head that none follows in the same turn of the event loop, as that
    of a stream with nothing to say yet, goes alone at the end of it.

    What a client does not read stays in memory, also after `close`; one that takes nothing of it is cut off.

    Args:
        unread_seconds: how long it may take nothing.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        unread_seconds: float = UNREAD_SECONDS,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._unread_seconds = unread_seconds
        self._head = b""
        self._written = 0
        self._watching = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, together with a head that waits; hold it when it is one."""
        if self._head:
            if len(data) <= _MOST_JOINED_BYTES:
                data, self._head = self._head + bytes(data), b""
            else:
                self._flush()
        elif data[: len(_HEAD)] == _HEAD:
            self._head = bytes(data)
            self._loop.call_soon(self._flush)
            return
        self._write(data)

    def close(self) -> None:
        """Close when what waits is written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._head = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        """True when it is closing or closed."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the other transport knows."""
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        """True when data is being received."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the connection to another protocol."""
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return whose connection it is."""
        return self._transport.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set from how many unsent bytes on the protocol is told to pause."""
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes are unsent."""
        return len(self._head) + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._write(head)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)
        self._written += len(data)
        if not self._watching and self._transport.get_write_buffer_size():
            self._watch()

    def _watch(self) -> None:
        self._watching = True
        taken = self._written - self._transport.get_write_buffer_size()
        self._loop.call_later(self._unread_seconds, self._look, taken)

    def _look(self, taken: int) -> None:
        self._watching = False
        unread = self._transport.get_write_buffer_size()
        if unread and self._written - unread == taken:
            self._transport.abort()
        elif unread:
            self._watch()
