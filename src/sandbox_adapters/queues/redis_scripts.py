"""The scripts of RedisQueue: every change of the queue is one of them, so each happens wholly or not at all.

All keys are under `{namespace}queue:`. A lane is one session of one principal; its name is `principal|session`, both
quoted by `key_part`, so that no value of a caller reaches a key of another kind.

| key | what |
| --- | --- |
| `items` | hash, execution id -> `lane {json}`: everything that waits |
| `since` | sorted set of `queued-at execution-id` of everything that waits, what waits longest first |
| `lane:{lane}` | list of execution ids in order of arrival |
| `lanes:{principal}` | sorted set of the principal's lanes, the one to be served next first |
| `ring` | sorted set of principals, the one to be served next first |
| `counts` | hash, principal -> how many of its items wait |
| `asked` | hash, lane -> `question until`: a taker asks its admission about the lane's head |
| `held` | sorted set of receipts that were handed over, scored by when they are handed out again |
| `held:items` | hash, receipt -> `execution-id lane {json}` |
| `wake` | list of tokens; a taker that has nothing to do pops one, blocking |
| `state`, `turns` | a counter for places in the rings, and how long the last hand-overs took, ms |

Every key lives as long as pending executions may at least, and longer only when it is used again.
"""

from __future__ import annotations

from typing import Final

from sandbox_adapters.redis_connection import LuaScript

MAX_TOKENS: Final = 64
"""Tokens that wait at most: each wakes one taker, and each hand-over wakes the next when more waits."""

_RECLAIMED_AT_ONCE: Final = 20

_PRELUDE: Final = """
-- ARGV: namespace, life of the keys in ms, ...
local Q, KEEP = ARGV[1] .. 'queue:', ARGV[2]
local items, counts, ring, asked = Q .. 'items', Q .. 'counts', Q .. 'ring', Q .. 'asked'
local held, held_items, wake, state, turns = Q .. 'held', Q .. 'held:items', Q .. 'wake', Q .. 'state', Q .. 'turns'
local since = Q .. 'since'

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function keep(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, KEEP) end
end

local function place_at_end() return redis.call('HINCRBY', state, 'seq', 1) end

local function place_in_front(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return (tonumber(first[2] or '0')) - 1
end

local function principal_of(lane) return string.match(lane, '^([^|]*)') end

local function wake_one(most)
  if redis.call('LLEN', wake) < most then
    redis.call('RPUSH', wake, '1')
    keep(wake)
  end
end

-- Times are all in UTC and so sort as texts. Quotes in what callers named are escaped, and so match nothing here.
local function age_mark(id, value) return (string.match(value, '"queued_at":"([^"]+)"') or '') .. ' ' .. id end

local function enter(id, value, in_front)
  local lane = string.match(value, '^(%S+) ')
  local p = principal_of(lane)
  local list, lanes = Q .. 'lane:' .. lane, Q .. 'lanes:' .. p
  if redis.call('HLEN', items) == 0 then redis.call('HSET', state, 'began', now()) end
  redis.call('HSET', items, id, value)
  redis.call('HINCRBY', counts, p, 1)
  redis.call('ZADD', since, 0, age_mark(id, value))
  if in_front then
    redis.call('LPUSH', list, id)
    redis.call('ZADD', ring, place_in_front(ring), p)
    redis.call('ZADD', lanes, place_in_front(lanes), lane)
  else
    redis.call('RPUSH', list, id)
    redis.call('ZADD', ring, 'NX', place_at_end(), p)
    redis.call('ZADD', lanes, 'NX', place_at_end(), lane)
  end
  keep(items, counts, list, ring, lanes, state, since)
  wake_one(MAX_TOKENS)
end

local function leave_ring(lane, p)
  redis.call('HDEL', asked, lane)
  redis.call('ZREM', Q .. 'lanes:' .. p, lane)
  if redis.call('ZCARD', Q .. 'lanes:' .. p) == 0 then redis.call('ZREM', ring, p) end
end

local function forget(id)
  local value = redis.call('HGET', items, id)
  if not value then return nil end
  local lane = string.match(value, '^(%S+) ')
  local p = principal_of(lane)
  redis.call('HDEL', items, id)
  redis.call('ZREM', since, age_mark(id, value))
  redis.call('LREM', Q .. 'lane:' .. lane, 1, id)
  if redis.call('HINCRBY', counts, p, -1) <= 0 then redis.call('HDEL', counts, p) end
  if redis.call('LLEN', Q .. 'lane:' .. lane) == 0 then leave_ring(lane, p) end
  if redis.call('HLEN', items) == 0 then redis.call('DEL', wake, since) end
  return value, lane, p
end
""".replace("MAX_TOKENS", str(MAX_TOKENS))


def _script(body: str) -> LuaScript:
    return LuaScript(_PRELUDE + body)


PUT: Final = _script("""
-- ... execution id, lane and JSON, principal, most in all, most of one. Answers how many wait, and the mean turn in ms
-- (-1: unknown), after 0 for done, 1 for full, 2 for too many of this principal.
local id, value, p, most, most_of_one = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('HEXISTS', items, id) == 1 then return {0, 0, 0} end
local depth, mine = redis.call('HLEN', items), tonumber(redis.call('HGET', counts, p) or '0')
if depth >= most or mine >= most_of_one then
  local last, sum = redis.call('LRANGE', turns, 0, -1), 0
  for _, ms in ipairs(last) do sum = sum + ms end
  local mean = -1
  if #last > 0 then
    local present = depth > 0 and now() - tonumber(redis.call('HGET', state, 'began') or now()) or 0
    mean = math.max(present, math.floor(sum / #last))
  end
  if depth >= most then return {1, depth, mean} end
  return {2, mine, mean}
end
enter(id, value, false)
return {0, depth + 1, 0}
""")

CHOOSE: Final = _script(
    """
-- ... question, how long it may take in ms, lanes that are not to be asked about. Answers {1, id, lane, JSON}, or
-- {0, ms until something that was handed over comes back or -1}. Asked again with the same question: the same answer.
local question, at = ARGV[3], now()
local first = redis.call('ZRANGE', held, 0, 0, 'WITHSCORES')
local back_in = first[2] and math.max(0, tonumber(first[2]) - at) or -1
for _, receipt in ipairs(back_in == 0 and redis.call('ZRANGE', held, 0, RECLAIMED) or {}) do
  if tonumber(redis.call('ZSCORE', held, receipt)) > at then break end
  local id, value = string.match(redis.call('HGET', held_items, receipt) or '', '^(%S+) (.*)$')
  redis.call('ZREM', held, receipt)
  redis.call('HDEL', held_items, receipt)
  if id and redis.call('HEXISTS', items, id) == 0 then enter(id, value, true) end
end
if redis.call('HLEN', items) == 0 then return {0, back_in} end

local skipped, busy = {}, {}
for i = 5, #ARGV do skipped[ARGV[i]] = true end
local marks = redis.call('HGETALL', asked)
for i = 1, #marks, 2 do
  local by, ends = string.match(marks[i + 1], '^(%S+) (%d+)$')
  if by == question or tonumber(ends) <= at then
    redis.call('HDEL', asked, marks[i])
  else
    skipped[marks[i]] = true
    busy[principal_of(marks[i])] = true
  end
end

-- The id at the head of a lane. What lost its item, since a key was deleted by hand or evicted, is cleared away.
local function head(lane, p)
  while true do
    local id = redis.call('LINDEX', Q .. 'lane:' .. lane, 0)
    if not id then
      leave_ring(lane, p)
      return nil
    end
    if redis.call('HEXISTS', items, id) == 1 then return id end
    redis.call('LPOP', Q .. 'lane:' .. lane)
  end
end

local function pages(key)
  local start, page, i = 0, {}, 0
  return function()
    i = i + 1
    if i > #page then
      if start > 0 and #page < 100 then return nil end
      page, i = redis.call('ZRANGE', key, start, start + 99), 1
      start = start + 100
    end
    return page[i]
  end
end

local function offer(p)
  for lane in pages(Q .. 'lanes:' .. p) do
    if not skipped[lane] then
      local id = head(lane, p)
      if id then return lane, id end
    end
  end
  return nil
end

local lane, id
for p in pages(ring) do
  if not busy[p] then
    lane, id = offer(p)
    if lane then break end
  end
end
if not lane then
  for p in pages(ring) do
    if busy[p] then
      lane, id = offer(p)
      if lane then break end
    end
  end
end
if lane then
  redis.call('HSET', asked, lane, question .. ' ' .. string.format('%.0f', at + ARGV[4]))
  keep(items, counts, ring, asked, state, since, Q .. 'lanes:' .. principal_of(lane), Q .. 'lane:' .. lane)
  return {1, id, lane, string.match(redis.call('HGET', items, id), '^%S+ (.*)$')}
end
return {0, back_in}
""".replace("RECLAIMED", str(_RECLAIMED_AT_ONCE))
)

HAND_OVER: Final = _script("""
-- ... question, execution id, receipt, how long it is held in ms. What was removed during the question goes over too:
-- its claim will be refused.
local question, id, receipt, at = ARGV[3], ARGV[4], ARGV[5], now()
local value, lane, p = forget(id)
if not value then return 0 end
local mark = redis.call('HGET', asked, lane)
if mark and string.match(mark, '^(%S+)') == question then redis.call('HDEL', asked, lane) end
redis.call('ZADD', held, at + ARGV[6], receipt)
redis.call('HSET', held_items, receipt, id .. ' ' .. value)
redis.call('ZADD', ring, 'XX', place_at_end(), p)
redis.call('ZADD', Q .. 'lanes:' .. p, 'XX', place_at_end(), lane)
redis.call('LPUSH', turns, at - tonumber(redis.call('HGET', state, 'began') or at))
redis.call('LTRIM', turns, 0, 15)
redis.call('HSET', state, 'began', at)
keep(held, held_items, turns, state)
if redis.call('HLEN', items) > 0 then wake_one(1) end
return 1
""")

WITHDRAW: Final = _script(
    """
-- ... question: it is not asked any more, and others may ask it.
local marks = redis.call('HGETALL', asked)
for i = 1, #marks, 2 do
  if string.match(marks[i + 1], '^(%S+)') == ARGV[3] then
    redis.call('HDEL', asked, marks[i])
    wake_one(MAX_TOKENS)
  end
end
return 0
""".replace("MAX_TOKENS", str(MAX_TOKENS))
)

DONE: Final = _script("""
-- ... receipt, execution id. One that came back meanwhile, since it was held for too long, is forgotten too.
redis.call('HDEL', held_items, ARGV[3])
if redis.call('ZREM', held, ARGV[3]) == 0 then forget(ARGV[4]) end
return 0
""")

GIVE_BACK: Final = _script("""
-- ... receipt.
local id, value = string.match(redis.call('HGET', held_items, ARGV[3]) or '', '^(%S+) (.*)$')
redis.call('ZREM', held, ARGV[3])
redis.call('HDEL', held_items, ARGV[3])
if id and redis.call('HEXISTS', items, id) == 0 then enter(id, value, true) end
return 0
""")

RENEW: Final = _script("""
-- ... how long in ms, receipts.
local at = now()
for i = 4, #ARGV do redis.call('ZADD', held, 'XX', at + ARGV[3], ARGV[i]) end
keep(held, held_items)
return 0
""")

REMOVE: Final = _script("""
-- ... execution id. Answers 0 also for one that a taker asks about: it may be handed over all the same.
local value = redis.call('HGET', items, ARGV[3])
if not value then return 0 end
local lane = string.match(value, '^(%S+) ')
local mark = redis.call('HGET', asked, lane)
local is_asked = mark and redis.call('LINDEX', Q .. 'lane:' .. lane, 0) == ARGV[3]
forget(ARGV[3])
return is_asked and 0 or 1
""")

STATS: Final = _script(
    """
-- Answers how many wait, and since when the first of them. A mark whose item was lost is cleared away.
local depth, oldest = redis.call('HLEN', items), ''
for _, mark in ipairs(redis.call('ZRANGE', since, 0, RECLAIMED)) do
  local at, id = string.match(mark, '^(%S*) (.*)$')
  if redis.call('HEXISTS', items, id) == 1 then
    oldest = at
    break
  end
  redis.call('ZREM', since, mark)
end
return {depth, oldest}
""".replace("RECLAIMED", str(_RECLAIMED_AT_ONCE))
)

PASS_ON: Final = _script(
    """
-- A token that came to a taker which has something to do already.
if redis.call('HLEN', items) > 0 then wake_one(MAX_TOKENS) end
return 0
""".replace("MAX_TOKENS", str(MAX_TOKENS))
)
