"""FlakyWay: a way to Redis that breaks on purpose, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.redis_server import RedisServer

_CHUNK_BYTES = 64 * 1024


class FlakyWay:
    """Carries bytes between clients and a server. `lose_replies` cuts connections after the server got the command."""

    def __init__(self) -> None:
        self.url = ""
        self.lost = 0
        self._to_lose = 0

    def lose_replies(self, count: int) -> None:
        """Cut the next `count` connections that a reply comes over, and throw the reply away."""
        self._to_lose = count

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """Serve one client."""
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.create_task(self._pass(reader, to_server)),
            asyncio.create_task(self._back(from_server, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, to_server):
                end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                writer.write(data)
                await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self._to_lose:
                    self._to_lose -= 1
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def flaky_way(server: RedisServer) -> AsyncIterator[FlakyWay]:
    """Open a way to a server."""
    way = FlakyWay()
    listening = await asyncio.start_server(lambda r, w: way.carry(r, w, server.port), "127.0.0.1", 0)
    way.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    try:
        yield way
    finally:
        listening.close()
