"""The scripts of RabbitQueue's index in Redis: every change of it is one of them.

RabbitMQ keeps the items and hands them out. It has no exact bound, cannot drop a message that waits, and cannot say
whose turn it is. So there is a small index beside it, without the items themselves:

| key | what |
| --- | --- |
| `items` | hash, execution id -> `bucket lane queued-at`: everything that was put and is not done |
| `held` | sorted set of those that were handed over, scored by when they count as waiting again |
| `since` | sorted set of `queued-at execution-id` of everything that waits |
| `counts` | hash, principal -> how many of its items wait |
| `lanes` | hash, lane -> `bucket count` |
| `buckets` | hash, bucket -> `owner labels owner-place place count lanes`, of buckets that are in use |
| `dead` | hash, bucket -> messages whose item was removed |
| `missed` | hash, bucket -> since when takers find nothing there |
| `state` | a counter for places, and one for what has left |

A lane gets a bucket of its own while there are enough: half of them for the lanes of principals that have one already,
the rest for those that have none. Lanes beyond share: first with lanes of the same principal and the same labels, then
of the same labels, then any. `*` as owner or labels of a bucket says that they are mixed.
"""

from __future__ import annotations

from typing import Final

from sandbox_adapters.redis_connection import LuaScript
from sandbox_adapters.redis_time import REDIS_TIME

_AT_ONCE: Final = 20

_PRELUDE: Final = (
    REDIS_TIME
    + """
-- ARGV: namespace, life of the keys in ms, ...
local Q, KEEP = ARGV[1] .. 'queue:rabbitmq:', ARGV[2]
local items, held, since, counts = Q .. 'items', Q .. 'held', Q .. 'since', Q .. 'counts'
local lanes, buckets, dead, missed, state = Q .. 'lanes', Q .. 'buckets', Q .. 'dead', Q .. 'missed', Q .. 'state'

local function keep()
  for _, key in ipairs({items, held, since, counts, lanes, buckets, dead, missed, state}) do
    redis.call('PEXPIRE', key, KEEP)
  end
end

local function place_at_end() return redis.call('HINCRBY', state, 'seq', 1) end

local function principal_of(lane) return string.match(lane, '^([^|]*)') end
local function labels_of(lane) return string.match(lane, '^[^|]*|[^|]*|(.+)$') or '-' end

local function read_bucket(b)
  local value = redis.call('HGET', buckets, b)
  if not value then return nil end
  local owner, labels, owners, own, n, ln = string.match(value, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
  return {b = b, owner = owner, labels = labels, owners = tonumber(owners), own = tonumber(own), n = tonumber(n),
          lanes = tonumber(ln)}
end

local function write_bucket(bucket)
  redis.call('HSET', buckets, bucket.b, string.format('%s %s %.0f %.0f %.0f %.0f', bucket.owner, bucket.labels,
    bucket.owners, bucket.own, bucket.n, bucket.lanes))
end

local function all_buckets()
  local found, names = {}, redis.call('HKEYS', buckets)
  for _, b in ipairs(names) do found[#found + 1] = read_bucket(b) end
  return found
end

local function waits(id, lane, at)
  redis.call('HINCRBY', counts, principal_of(lane), 1)
  redis.call('ZADD', since, 0, at .. ' ' .. id)
end

local function waits_no_more(id, lane, at)
  local p = principal_of(lane)
  if redis.call('HINCRBY', counts, p, -1) <= 0 then redis.call('HDEL', counts, p) end
  redis.call('ZREM', since, at .. ' ' .. id)
end

local function item(id)
  local value = redis.call('HGET', items, id)
  if not value then return nil end
  return string.match(value, '^(%S+) (%S+) (%S+)$')
end

-- What a dead taker held waits again: RabbitMQ has put it back.
local function lapse(at)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', at, 'LIMIT', 0, AT_ONCE)) do
    redis.call('ZREM', held, id)
    local b, lane, queued = item(id)
    if b then waits(id, lane, queued) end
  end
end

local function forget(id)
  local b, lane, queued = item(id)
  if not b then return nil end
  redis.call('HDEL', items, id)
  if redis.call('ZREM', held, id) == 0 then waits_no_more(id, lane, queued) end
  local bucket = read_bucket(b)
  local of, n = string.match(redis.call('HGET', lanes, lane) or '', '^(%S+) (%S+)$')
  n = tonumber(n or '1') - 1
  if n > 0 then
    redis.call('HSET', lanes, lane, of .. ' ' .. n)
  else
    redis.call('HDEL', lanes, lane)
    if bucket then bucket.lanes = bucket.lanes - 1 end
  end
  if bucket then
    bucket.n = bucket.n - 1
    if bucket.n > 0 then write_bucket(bucket) else redis.call('HDEL', buckets, b) end
    if bucket.n <= 0 then redis.call('HDEL', missed, b) end
  end
  return b, bucket and math.max(bucket.n, 0) or 0
end

local function serve(b, place, own)
  local bucket = read_bucket(b)
  if not bucket then return end
  for _, other in ipairs(all_buckets()) do
    if other.b == b then other.own = own end
    if other.owner == bucket.owner then other.owners = place end
    if other.b == b or other.owner == bucket.owner then write_bucket(other) end
  end
end
""".replace("AT_ONCE", str(_AT_ONCE))
)


def _script(body: str) -> LuaScript:
    return LuaScript(_PRELUDE + body)


PUT: Final = _script("""
-- ... execution id, lane, queued at, most in all, most of one, how many buckets there are, those to avoid. Answers 0
-- for done, 1 for full, 2 for too many of this principal, 3 when every bucket is to be avoided; how many wait; how many
-- have left; the bucket, -1 when there is nothing to put.
local id, lane, queued, most, most_of_one, size = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]),
  tonumber(ARGV[8])
local left = tonumber(redis.call('HGET', state, 'left') or '0')
lapse(now())
if redis.call('HEXISTS', items, id) == 1 then return {0, 0, left, -1} end
local p, labels = principal_of(lane), labels_of(lane)
local depth, mine = redis.call('ZCARD', since), tonumber(redis.call('HGET', counts, p) or '0')
if depth >= most then return {1, depth, left, -1} end
if mine >= most_of_one then return {2, mine, left, -1} end

local b, n = string.match(redis.call('HGET', lanes, lane) or '', '^(%S+) (%S+)$')
local bucket = b and read_bucket(b)
if not bucket then
  n = 0
  local used, taken, owned, owners = 0, {}, 0, nil
  local best, avoid = {}, {}
  for i = 9, #ARGV do
    avoid[ARGV[i]] = true
    taken[ARGV[i]] = true
    used = used + 1
  end
  local function consider(rank, other)
    if not best[rank] or other.lanes < best[rank].lanes then best[rank] = other end
  end
  for _, other in ipairs(all_buckets()) do
    if not taken[other.b] then used = used + 1 end
    taken[other.b] = true
    if other.owner == p then
      owned = owned + 1
      owners = other.owners
    end
    if not avoid[other.b] then
      if other.owner == p and other.labels == labels then consider(2, other) end
      if other.labels == labels then consider(3, other) end
      consider(4, other)
    end
  end
  if used < size and (owned == 0 or not best[2] or used < size / 2) then
    for free = 0, size - 1 do
      if not taken[tostring(free)] then
        bucket = {b = tostring(free), owner = p, labels = labels, owners = owners or place_at_end(),
                  own = place_at_end(), n = 0, lanes = 0}
        break
      end
    end
  else
    bucket = best[2] or best[3] or best[4]
    if not bucket then return {3, 0, left, -1} end
    if bucket.owner ~= p then bucket.owner = '*' end
    if bucket.labels ~= labels then bucket.labels = '*' end
  end
  bucket.lanes = bucket.lanes + 1
end
bucket.n = bucket.n + 1
write_bucket(bucket)
redis.call('HSET', lanes, lane, bucket.b .. ' ' .. (tonumber(n) + 1))
redis.call('HSET', items, id, bucket.b .. ' ' .. lane .. ' ' .. queued)
waits(id, lane, queued)
keep()
return {0, depth + 1, left, tonumber(bucket.b)}
""")

IS_HERE: Final = _script("""
-- ... execution id, bucket in which its message was found. Answers 0 when it was removed or is done.
redis.call('HDEL', missed, ARGV[4])
local b = item(ARGV[3])
if b == ARGV[4] then return 1 end
if redis.call('HEXISTS', dead, ARGV[4]) == 1 and redis.call('HINCRBY', dead, ARGV[4], -1) <= 0 then
  redis.call('HDEL', dead, ARGV[4])
end
return 0
""")

HAND_OVER: Final = _script("""
-- ... execution id, for how many ms it counts as held.
local b, lane, queued = item(ARGV[3])
if not b then return 0 end
if redis.call('ZADD', held, now() + ARGV[4], ARGV[3]) == 1 then waits_no_more(ARGV[3], lane, queued) end
serve(b, place_at_end(), place_at_end())
redis.call('HINCRBY', state, 'left', 1)
keep()
return 1
""")

GIVE_BACK: Final = _script("""
-- ... execution id.
local b, lane, queued = item(ARGV[3])
if not b or redis.call('ZREM', held, ARGV[3]) == 0 then return 0 end
waits(ARGV[3], lane, queued)
local owners, own = 0, 0
for _, other in ipairs(all_buckets()) do
  owners, own = math.min(owners, other.owners), math.min(own, other.own)
end
serve(b, owners - 1, own - 1)
return 1
""")

FORGET: Final = _script("""
-- ... execution id.
forget(ARGV[3])
return 0
""")

REMOVE: Final = _script("""
-- ... execution id. Answers 1 when it waited; the bucket, and how many other messages are there, and how many dead.
lapse(now())
if not item(ARGV[3]) or redis.call('ZSCORE', held, ARGV[3]) then return {0, 0, 0, 0} end
local b, n = forget(ARGV[3])
local lie = redis.call('HINCRBY', dead, b, 1)
keep()
return {1, tonumber(b), n, lie}
""")

SWEPT: Final = _script("""
-- ... bucket: no message of a removed item is there any more.
redis.call('HDEL', dead, ARGV[3])
return 0
""")

MISSED: Final = _script("""
-- ... bucket in which nothing was found, after how many ms what the index has of it is forgotten.
local at, b = now(), ARGV[3]
-- Others took the last of it meanwhile. A mark left here would count against what is put there hours later.
if redis.call('HEXISTS', buckets, b) == 0 then return 0 end
if redis.call('HSETNX', missed, b, at) == 1 then
  keep()
  return 0
end
if at - tonumber(redis.call('HGET', missed, b)) < tonumber(ARGV[4]) then return 0 end
redis.call('HDEL', missed, b)
local all, gone = redis.call('HGETALL', items), 0
for i = 1, #all, 2 do
  if string.match(all[i + 1], '^(%S+)') == b then
    forget(all[i])
    gone = gone + 1
  end
end
return gone
""")

STATS: Final = _script("""
-- Answers how many wait, and since when the first of them.
lapse(now())
local first = redis.call('ZRANGE', since, 0, 0)[1]
return {redis.call('ZCARD', since), first and string.match(first, '^(%S*)') or ''}
""")
