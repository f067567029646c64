"""PartitionedWay: a way to Redis that can stop carrying anything, without a word to either side, and go on later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.redis_server import RedisServer

_CHUNK_BYTES = 64 * 1024


class PartitionedWay:
    """Carries bytes between clients and a server while it is open. Closed, connections stay and nothing moves."""

    def __init__(self, port: int) -> None:
        self.url = ""
        self._port = port
        self._open = asyncio.Event()
        self._open.set()

    def cut(self) -> None:
        """Carry nothing from now on; what comes meanwhile is kept."""
        self._open.clear()

    def mend(self) -> None:
        """Carry on, with what was kept first."""
        self._open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        to_server: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
            ways = [
                asyncio.create_task(self._pass(reader, to_server)),
                asyncio.create_task(self._pass(from_server, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
        except OSError:
            return
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def partitioned_way(server: RedisServer) -> AsyncIterator[PartitionedWay]:
    """Open a way to a server."""
    way = PartitionedWay(server.port)
    listening = await asyncio.start_server(way.carry, "127.0.0.1", 0)
    way.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    try:
        yield way
    finally:
        way.mend()
        listening.close()
