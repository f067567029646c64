"""TlsStream: TLS over a TcpStream, as bounded as it is, for asyncio and trio alike."""

from __future__ import annotations

import ssl
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel

from sandbox_adapters.egress.streams import PIECE_BYTES, Activity, TcpStream

_MOST_REPLIES_BYTES = 64 * 1024
"""What TLS itself may have to say (key updates, alerts) before it must be sent, and nothing more be read."""


class TlsStream:
    """See TcpStream: the same promises for what is inside. Owns `under`. `handshake` comes first.

    Args:
        under: connected; its next bytes are the peer's handshake.
        context: of the side that this is.
        server_name: of the peer, when this is the client's side; verified as `context` says. None on the server's side.

    An end without close_notify is a broken connection, not an end (RFC 8446, section 6.1).
    """

    def __init__(self, under: TcpStream, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        self._under = under
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        # Records must leave in the order in which they were made, also when both directions make some.
        self._sending = anyio.Lock()
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
        return self._under.activity

    async def handshake(self) -> None:
        """Do the handshake; the caller bounds its time. Raises anyio.BrokenResourceError and ssl.SSLError."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take()
            except ssl.SSLError:
                with suppress(anyio.BrokenResourceError):
                    await self._flush()  # the alert that says why
                raise
        await self._flush()

    def push_back(self, data: bytes) -> None:
        """Let the next `receive` return `data` first."""
        self._pushed_back = data + self._pushed_back

    async def receive(self) -> bytes:
        """Return the next bytes of the inside; empty when the peer has said that it has finished."""
        await anyio.lowlevel.checkpoint()
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back, b""
            return data
        while True:
            try:
                return self._tls.read(PIECE_BYTES)
            except ssl.SSLWantReadError:
                # Whoever sends takes along what TLS has to say; waiting for that could wait for the peer to read.
                if self._outgoing.pending > _MOST_REPLIES_BYTES or not self._sending.locked():
                    await self._flush()
                await self._take()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise anyio.BrokenResourceError from error

    async def send(self, data: bytes) -> None:
        """Send all of `data`; returns when the kernel has taken it."""
        left = memoryview(data)
        async with self._sending:
            while left:
                try:
                    count = self._tls.write(left[:PIECE_BYTES])
                except ssl.SSLError as error:
                    raise anyio.BrokenResourceError from error
                left = left[count:]
                await self._drain()

    async def finish_sending(self) -> None:
        """Tell the peer that nothing more will come, in TLS and below it; receiving goes on."""
        # `unwrap` reads on for the peer's own end, which nobody needs, and would lose what else has come.
        unread = self._incoming.read()
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._incoming.write(unread)
        await self._flush()
        await self._under.finish_sending()

    def close(self) -> None:
        """Close the socket. A second close does nothing."""
        self._under.close()

    def abort(self) -> None:
        """Close so that the peer sees a reset."""
        self._under.abort()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            async with self._sending:
                await self._drain()

    async def _drain(self) -> None:
        while self._outgoing.pending:
            await self._under.send(self._outgoing.read())

    async def _take(self) -> None:
        piece = await self._under.receive()
        if not piece:
            raise anyio.BrokenResourceError
        self._incoming.write(piece)
