"""TcpStream: a connected socket with exact buffers, for asyncio and trio alike.

anyio's own streams read ahead up to 256 KiB a connection on asyncio, and switch the poller on every read. A hostile
client may hold hundreds of connections open and slow, so what each may cost matters: here it is the piece in hand.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import anyio
import anyio.lowlevel

PIECE_BYTES = 64 * 1024
"""Most that is read at once, and so all that one direction of a connection ever holds."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Activity:
    """When anything last moved on a client's connection or on the ones made for it; seconds of `anyio.current_time`."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = anyio.current_time()

    def touch(self) -> None:
        """Something moved now."""
        self.last = anyio.current_time()


class ByteStream(Protocol):
    """What the HTTP side needs of a connection, with TLS around it or without; see TcpStream."""

    @property
    def activity(self) -> Activity: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def push_back(self, data: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    async def send(self, data: bytes) -> None: ...
    async def finish_sending(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class TcpStream:
    """Owns `sock`, which is connected. One task may receive while another sends.

    Args:
        sock: becomes non-blocking; closed by `close`, `abort` and at the end of `with`.
        activity: told of every piece that moved.
        received, sent: called with the number of bytes, after they moved.

    Receiving and sending raise anyio.BrokenResourceError when the peer is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        activity: Activity,
        *,
        received: Callable[[int], None] | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._activity = activity
        self._received = received
        self._sent = sent
        self._pushed_back = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def activity(self) -> Activity:
        """The connection's clock."""
        return self._activity

    def push_back(self, data: bytes) -> None:
        """Let the next `receive` return `data` first. It was read too far ahead, so it stays as bounded as it was."""
        self._pushed_back = data + self._pushed_back

    async def receive(self) -> bytes:
        """Return the next bytes, at most PIECE_BYTES unless pushed back; empty when the peer has finished sending."""
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back, b""
            await anyio.lowlevel.checkpoint()
            return data
        # Cancellation and other tasks get their turn on every piece, also when the socket is never empty.
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._sock.recv(PIECE_BYTES)
                break
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
            except OSError as error:
                raise anyio.BrokenResourceError from error
        self._activity.touch()
        if self._received is not None:
            self._received(len(data))
        return data

    async def receive_exactly(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises anyio.BrokenResourceError when the peer finishes before."""
        data = b""
        while len(data) < size:
            piece = await self.receive()
            if not piece:
                raise anyio.BrokenResourceError
            data += piece
        self.push_back(data[size:])
        return data[:size]

    async def send(self, data: bytes) -> None:
        """Send all of `data`; returns when the kernel has taken it."""
        # What waits to be answered may be long without a byte to be received: a client can send many requests at once.
        await anyio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            try:
                count = self._sock.send(left)
            except BlockingIOError:
                await anyio.wait_writable(self._sock)
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            self._activity.touch()
            if self._sent is not None:
                self._sent(count)
            left = left[count:]

    async def finish_sending(self) -> None:
        """Tell the peer that nothing more will come; receiving goes on."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise

    def close(self) -> None:
        """Close the socket. A second close does nothing."""
        self._sock.close()

    def abort(self) -> None:
        """Close so that the peer sees a reset, and cannot take what it got for the whole (socket(7), SO_LINGER)."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
        self._sock.close()


async def relay(first: TcpStream, second: TcpStream) -> None:
    """Copy both ways until both have finished sending. A reset on one side resets the other."""

    async def copy(source: TcpStream, sink: TcpStream) -> None:
        try:
            while piece := await source.receive():
                await sink.send(piece)
            await sink.finish_sending()
        except anyio.BrokenResourceError:
            both.cancel_scope.cancel()
            broken.append(True)

    broken: list[bool] = []
    async with anyio.create_task_group() as both:
        both.start_soon(copy, first, second)
        both.start_soon(copy, second, first)
    if broken:
        first.abort()
        second.abort()


async def discard_input(stream: ByteStream, *, max_bytes: int, seconds: float) -> None:
    """Finish sending, then read and drop what the peer still sends, within both bounds.

    Closing a socket that has unread input sends a reset, which can take the last answer away from the peer before
    it was read (RFC 9112, section 9.6).
    """
    with anyio.move_on_after(seconds):
        try:
            await stream.finish_sending()
            while max_bytes > 0 and (piece := await stream.receive()):
                max_bytes -= len(piece)
        except anyio.BrokenResourceError:
            return
