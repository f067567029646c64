"""RedisHarness: a RedisStateStore on a real Redis, with time that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.store import StateStore
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.store_harness import RawExecution, StoreHarness
from tests.redis_server import RedisServer

NOW_KEY = "test:now"
TEST_TIME = f"local function now() return tonumber(redis.call('GET', '{NOW_KEY}') or '0') end\n"
TTL_SECONDS = 4096.0
"""A power of two, so that every share of it is whole milliseconds, as in Redis."""

# Redis's own clock goes on while a test works: what that took from a time to live is given back, up to half a second.
_ADVANCE = f"""
local ms, now = tonumber(ARGV[1]), tonumber(ARGV[2])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    redis.call('PEXPIRE', key, math.ceil(left / 500) * 500 - ms)
  end
end
redis.call('SET', '{NOW_KEY}', now)
"""


@dataclass
class RedisHarness:
    """A RedisStateStore and its clock; looks into Redis with a plain client."""

    store: RedisStateStore
    clock: FakeClock
    server: RedisServer
    prefix: str = ""
    ttl_seconds: float = TTL_SECONDS

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        self.server.ask("EVAL", _ADVANCE, 0, round(seconds * 1000), round(self.clock.monotonic() * 1000))

    async def raw_read(self, execution_id: ExecutionId) -> RawExecution:
        document = self.server.ask("GET", self._key(execution_id))
        lines = self.server.ask("LRANGE", self._key(execution_id) + ":output", 0, -1)
        return RawExecution(document, tuple(lines))

    async def raw_write(
        self, execution_id: ExecutionId, *, document: bytes | None = None, lines: Mapping[int, bytes] | None = None
    ) -> None:
        if document is not None:
            self.server.ask("SET", self._key(execution_id), document, "KEEPTTL")
        for seq, line in (lines or {}).items():
            self.server.ask("LSET", self._key(execution_id) + ":output", seq - 1, line)

    def _key(self, execution_id: ExecutionId) -> str:
        return f"{self.prefix}execution:{execution_id}"


@asynccontextmanager
async def redis_harness(
    server: RedisServer, store_type: type[RedisStateStore] = RedisStateStore, **options: object
) -> AsyncIterator[RedisHarness]:
    """Open a store on an emptied server."""
    server.ask("FLUSHALL")
    clock = FakeClock()
    given = RedisOptions(url=SecretStr(server.url), timeout_seconds=20, **options)  # type: ignore[arg-type]  # of the test
    async with (
        RedisConnection(given) as redis,
        store_type(redis, clock, ttl_seconds=TTL_SECONDS, time=TEST_TIME) as store,
    ):
        yield RedisHarness(store, clock, server, given.namespace)


def satisfies_the_port(store: RedisStateStore, harness: RedisHarness) -> tuple[StateStore, StoreHarness]:
    """Checked by mypy: the adapter fits the port, the harness its Protocol."""
    return store, harness
