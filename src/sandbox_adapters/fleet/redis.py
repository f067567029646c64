"""RedisFleet: the living backs, as they tell it themselves.

| key | what |
| --- | --- |
| `back:{node}` | what a back told last, JSON |
| `backs` | sorted set, node -> until when it counts as living, ms |
| `backs:offers` | sorted set, `labels node` of those that offer labels and take work -> until when, as in `backs` |

All of it lives for as long as what was told last counts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from sandbox_adapters.fleet.record import BackRecord, decode_record, encode_record
from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part
from sandbox_adapters.redis_time import REDIS_TIME
from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.domain.ids import NodeId

LIFE_SECONDS: Final = 45.0
"""A back that was silent for so long lives no more."""

MOST_LISTED: Final = 10_000
_PAGE: Final = 500

_log = logging.getLogger("sandbox_adapters.fleet")

_ANNOUNCE: Final = LuaScript(
    REDIS_TIME
    + """
-- KEYS: the record, backs, offers. ARGV: life in ms, node, record, `labels node` or '', 1 when it takes work.
local at, life = now(), tonumber(ARGV[1])
redis.call('SET', KEYS[1], ARGV[3], 'PX', life)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', at)
redis.call('ZADD', KEYS[2], at + life, ARGV[2])
redis.call('PEXPIRE', KEYS[2], life)
if ARGV[4] ~= '' and ARGV[5] == '1' then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', at)
  redis.call('ZADD', KEYS[3], at + life, ARGV[4])
  redis.call('PEXPIRE', KEYS[3], life)
elseif ARGV[4] ~= '' then
  redis.call('ZREM', KEYS[3], ARGV[4])
end
return 0
"""
)

_WITHDRAW: Final = LuaScript("""
-- KEYS: the record, backs, offers. ARGV: node, `labels node` or ''.
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[3], ARGV[2]) end
return 0
""")

_OFFERS: Final = LuaScript(
    REDIS_TIME
    + """
-- KEYS: offers. Answers with each set of labels once.
local seen, sets = {}, {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now()), '+inf')) do
  local set = string.match(member, '^(%S+) ')
  if set and not seen[set] then
    seen[set] = true
    sets[#sets + 1] = set
  end
end
return sets
"""
)

_LIST: Final = LuaScript(
    REDIS_TIME
    + """
-- KEYS: backs. ARGV: what the names of records begin with, and of places, how many to leave out, how many to take.
-- Answers with how many there were, then for each that is known the ms for which it still counts, how many places it
-- has given away now, and its record.
local at = now()
local alive = '(' .. string.format('%.0f', at)
local found = redis.call('ZRANGEBYSCORE', KEYS[1], alive, '+inf', 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])
local answer = {#found / 2}
for i = 1, #found, 2 do
  local record = redis.call('GET', ARGV[1] .. found[i])
  if record then
    answer[#answer + 1] = tonumber(found[i + 1]) - at
    answer[#answer + 1] = redis.call('ZCOUNT', ARGV[2] .. found[i], alive, '+inf')
    answer[#answer + 1] = record
  end
end
return answer
"""
)


class RedisFleet:
    """Satisfies `Fleet`, for fronts; backs announce themselves here. asyncio only.

    Args:
        connection: of the state; entered before use.
        life_seconds: how long what a back told counts.
    """

    def __init__(self, connection: RedisConnection, *, life_seconds: float = LIFE_SECONDS) -> None:
        self._connection = connection
        self._life_ms = round(life_seconds * 1000)
        namespace = connection.namespace
        self._record_prefix = f"{namespace}back:"
        self._places_prefix = f"{namespace}places:node:"
        self._keys = (f"{namespace}backs", f"{namespace}backs:offers")

    async def announce(self, record: BackRecord) -> None:
        """Let a back count as living from now on, as it is now. Raises StoreUnavailable."""
        node = key_part(record.node)
        raw = encode_record(record)
        takes_work = "0" if record.draining else "1"
        keys = (self._record_prefix + node, *self._keys)
        await self._connection.run(_ANNOUNCE, keys, (self._life_ms, node, raw, _offer(record), takes_work))

    async def withdraw(self, record: BackRecord) -> None:
        """Let a back count as living no more. Raises StoreUnavailable."""
        node = key_part(record.node)
        await self._connection.run(_WITHDRAW, (self._record_prefix + node, *self._keys), (node, _offer(record)))

    async def offers(self) -> Collection[frozenset[str]]:
        """Return the labels of the living backs that take work, in one script that looks only at those with labels."""
        found = await self._connection.run(_OFFERS, (self._keys[1],), ())
        return [frozenset(raw.decode(errors="replace").split(",")) for raw in found]

    async def backs(self) -> Sequence[BackRecord]:
        """Return the living backs, sorted by host and node, 10,000 at most. What cannot be read is left out and logged.

        `busy` is counted now, by the places that the store holds for them; the rest is what they told last. Raises
        StoreUnavailable.
        """
        records: dict[NodeId, BackRecord] = {}
        for start in range(0, MOST_LISTED, _PAGE):
            arguments = (self._record_prefix, self._places_prefix, start, _PAGE)
            found, *told = await self._connection.run(_LIST, (self._keys[0],), arguments)
            for left_ms, busy, raw in zip(told[::3], told[1::3], told[2::3], strict=True):
                try:
                    record = decode_record(raw, (self._life_ms - int(left_ms)) / 1000)
                except StoredDataCorrupt as error:
                    _log.warning("A worker is left out: %s", error)
                else:
                    records[record.node] = replace(record, busy=int(busy))
            if found < _PAGE:
                break
        return sorted(records.values(), key=lambda record: (record.host, record.node))


def _offer(record: BackRecord) -> str:
    """Return what stands in `backs:offers` for a back; "" for one without labels."""
    return f"{','.join(record.labels)} {key_part(record.node)}" if record.labels else ""
