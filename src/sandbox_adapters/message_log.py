"""MessageLog: what was sent on the streams of older clients, kept in Redis for a while so that it can be sent again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part

MAX_MESSAGES: Final = 500
"""What a stream keeps at most; its oldest messages go first."""

_APPEND: Final = LuaScript("""
-- KEYS: stream. ARGV: message, most messages, life in ms.
local entry = redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[2], '*', 'm', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
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


class MessageLog:
    """Streams of messages, each with a time to live.

    Args:
        connection: entered before use.
        ttl_seconds: how long a stream is kept after its last use.
    """

    def __init__(self, connection: RedisConnection, *, ttl_seconds: float) -> None:
        self._connection = connection
        self._life = round(ttl_seconds * 1000)

    async def append(self, name: StreamName, message: bytes) -> str:
        """Keep a message and return the name of its place, `time-number`. Raises StoreUnavailable."""
        entry = await self._connection.run(_APPEND, [self._key(name)], [message, MAX_MESSAGES, self._life])
        return str(entry.decode())

    async def read_from(self, name: StreamName, entry: str, *, limit: int = MAX_MESSAGES) -> list[tuple[str, bytes]]:
        """Return the messages from this place on, itself included, oldest first. Raises StoreUnavailable."""
        found = await self._connection.run(_FROM, [self._key(name)], [entry, limit, self._life])
        return [(place.decode(), message) for place, message in found]

    def _key(self, name: StreamName) -> str:
        parts = (name.principal, name.session, name.stream)
        return f"{self._connection.namespace}mcp:{':'.join(key_part(part) for part in parts)}"
