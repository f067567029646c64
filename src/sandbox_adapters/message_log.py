"""MessageLog: what was sent on the streams of older clients, kept in Redis for a while so that it can be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part
from sandbox_adapters.stores.redis_wakes import Channel, Wakes
from sandbox_core.domain.ids import ExecutionId

MAX_MESSAGES: Final = 500
"""What a stream keeps at most; its oldest messages go first."""

_APPEND: Final = LuaScript("""
-- KEYS: stream. ARGV: message, most messages, life in ms, channel of those who follow.
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], '*', 'm', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[4], 'more')
return entry
""")

_FROM: Final = LuaScript("""
-- KEYS: stream. ARGV: first entry, most entries, life in ms. As plain lists, whatever the client makes of XRANGE.
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local found = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
  found[#found + 1] = {entry[1], entry[2][2]}
end
return found
""")


@dataclass(frozen=True, slots=True)
class StreamName:
    """One stream of one session of one caller; a caller who names another's finds nothing."""

    principal: str
    session: str
    stream: str


class Following:
    """A stream that is being followed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._moved = channel.moved

    def mark(self) -> None:
        """Begin a look: what comes from now on ends the next `wait`."""
        self._moved = self._channel.moved

    async def wait(self) -> None:
        """Return when the stream may have grown since the last `mark`; sometimes it has not. The caller bounds it."""
        await self._moved.wait()


class MessageLog:
    """Streams of messages, each with a time to live.

    Args:
        connection: entered before use. So is the log itself, where streams are followed.
        ttl_seconds: how long a stream is kept after its last use.
    """

    def __init__(self, connection: RedisConnection, *, ttl_seconds: float) -> None:
        self._connection = connection
        self._life = round(ttl_seconds * 1000)
        self._wakes = Wakes(connection)
        self._listens = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._wakes.stop()

    async def append(self, name: StreamName, message: bytes) -> str:
        """Keep a message and return the name of its place, `time-number`. Raises StoreUnavailable."""
        channel = f"{self._connection.namespace}wake:{_place(name)}"
        entry = await self._connection.run(_APPEND, [self._key(name)], [message, MAX_MESSAGES, self._life, channel])
        return str(entry.decode())

    async def read_from(self, name: StreamName, entry: str, *, limit: int = MAX_MESSAGES) -> list[tuple[str, bytes]]:
        """Return the messages from this place on, itself included, oldest first. Raises StoreUnavailable."""
        found = await self._connection.run(_FROM, [self._key(name)], [entry, limit, self._life])
        return [(place.decode(), message) for place, message in found]

    @asynccontextmanager
    async def following(self, name: StreamName) -> AsyncIterator[Following]:
        """Hear of what is appended anywhere, while the context lasts. Raises StoreUnavailable.

        All followers share one subscription connection, which the first of them opens.
        """
        if not self._listens:
            self._listens = True
            self._wakes.start()
        # To the wakes a stream is a name as an execution's is, of which every message says: look.
        place = ExecutionId(_place(name))
        async with self._wakes.watch(place) as channel:
            await self._wakes.subscribe(place, channel)
            yield Following(channel)

    def _key(self, name: StreamName) -> str:
        return self._connection.namespace + _place(name)


def _place(name: StreamName) -> str:
    return f"mcp:{':'.join(key_part(part) for part in (name.principal, name.session, name.stream))}"
