"""What the scripts of RedisQueue share: the keys, and in Lua the lanes, rings and tokens behind them.

All keys are under `{namespace}queue:`. A lane is one session of one principal; its name is `principal|session`, both
quoted by `key_part`, so that no value of a caller reaches a key of another kind. What needs labels is in a lane of its
own, `principal|session|labels`, the labels sorted and joined by commas. Such a set of labels has its own ring and its
own lists of lanes, named with it, so that a taker looks only at what it may take. Principals and lanes that several
rings name are served by one sequence.

| key | what |
| --- | --- |
| `items` | hash, execution id -> `lane {json}`: everything that waits |
| `since` | sorted set of `queued-at execution-id` of everything that waits, what waits longest first |
| `lane:{lane}` | list of execution ids in order of arrival |
| `lanes:{principal}` | sorted set of the principal's lanes, the one to be served next first |
| `ring` | sorted set of principals, the one to be served next first |
| `counts` | hash, principal -> how many of its items wait |
| `held` | sorted set of receipts of what was handed over, scored by when it is handed out again |
| `held:items` | hash, receipt -> `execution-id lane {json}` |
| `wake` | list of tokens; a taker that has nothing to do pops one, blocking |
| `wake:{offers}` | such a list for the takers that offer these labels |
| `ring:{labels}`, `lanes:{principal}|{labels}` | `ring` and `lanes:{principal}` of what needs these labels |
| `sets` | set of the sets of labels that something waits with |
| `kinds` | hash, what an idle taker offers -> until when that is known; only of takers that offer labels |
| `state`, `turns` | a counter for places in the rings, and how long the last hand-overs took, ms |
| `probe` | when it was last asked how many wait, which a Redis that takes no writes does not answer |

Every key lives as long as pending executions may at least, and longer only when it is used again.
"""

from __future__ import annotations

from typing import Final

from sandbox_adapters.redis_time import REDIS_TIME

MAX_TOKENS: Final = 64
"""Tokens that wait at most. Each wakes one taker; a hand-over with so many items left makes up for one not given."""

_ASIDE_AT_ONCE: Final = 16
"""Items of one lane looked at to put a refused one back in its turn: so many may have been asked about at once."""

_TURNS: Final = 16
"""Turns that the mean is of, which says when to try again."""

PRELUDE: Final = (
    REDIS_TIME
    + """
-- ARGV: namespace, life of the keys in ms, ...
local Q, KEEP = ARGV[1] .. 'queue:', ARGV[2]
local items, counts, ring = Q .. 'items', Q .. 'counts', Q .. 'ring'
local held, held_items, wake, state, turns = Q .. 'held', Q .. 'held:items', Q .. 'wake', Q .. 'state', Q .. 'turns'
local since, sets, kinds = Q .. 'since', Q .. 'sets', Q .. 'kinds'

local function keep(...)
  for _, key in ipairs({...}) do redis.call('PEXPIRE', key, KEEP) end
end

local function place_at_end() return redis.call('HINCRBY', state, 'seq', 1) end

local function place_in_front(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return (tonumber(first[2] or '0')) - 1
end

local function principal_of(lane) return string.match(lane, '^([^|]*)') end

-- A set of labels is written sorted with commas; '' is none. A lane is `principal|session`, and `|labels` if there are.
local function set_of(lane) return string.match(lane, '^[^|]*|[^|]*|(.*)$') or '' end

local function ring_of(set) return set == '' and ring or ring .. ':' .. set end

local function lanes_of(p, set) return Q .. 'lanes:' .. p .. (set == '' and '' or '|' .. set) end

local function labels_in(set)
  local found = {}
  for label in string.gmatch(set, '[^,]+') do found[label] = true end
  return found
end

local function covers(offered, set)
  for label in string.gmatch(set, '[^,]+') do
    if not offered[label] then return false end
  end
  return true
end

local function kinds_of_takers()
  local at, known, living = now(), redis.call('HGETALL', kinds), {}
  for i = 1, #known, 2 do
    if tonumber(known[i + 1]) > at then living[#living + 1] = known[i] else redis.call('HDEL', kinds, known[i]) end
  end
  return living
end

local function push_token(offers, most)
  local list = offers == '' and wake or wake .. ':' .. offers
  if redis.call('LLEN', list) < most then
    redis.call('RPUSH', list, '1')
    keep(list)
  end
end

-- Wake one taker of each kind that may take what has this set of labels.
local function wake_one(set, most)
  if set == '' then return push_token('', most) end
  for _, offers in ipairs(kinds_of_takers()) do
    if covers(labels_in(offers), set) then push_token(offers, most) end
  end
end

-- After a hand-over. What was put woke a taker for itself, so somebody comes for the rest; but not for what was put
-- when there were too many tokens, nor where the one who came refused it, or took something with labels instead.
local function wake_for_the_rest(sets_waiting, rest, may_be_passed_over)
  local most = rest >= MAX_TOKENS and MAX_TOKENS or may_be_passed_over and 1
  if most and redis.call('EXISTS', ring) == 1 then push_token('', most) end
  for _, offers in ipairs(#sets_waiting > 0 and kinds_of_takers() or {}) do
    local offered = labels_in(offers)
    for _, set in ipairs(sets_waiting) do
      if covers(offered, set) then
        push_token(offers, 1)
        break
      end
    end
  end
end

-- Times are all in UTC and so sort as texts. Quotes in what callers named are escaped, and so match nothing here.
local function age_mark(id, value) return (string.match(value, '"queued_at":"([^"]+)"') or '') .. ' ' .. id end

-- Where a taker put it: at the end; or, of what was taken, in front of everything, or only of what came later.
local function enter(id, value, where)
  local lane = string.match(value, '^(%S+) ')
  local p, set = principal_of(lane), set_of(lane)
  local list, lanes, its_ring = Q .. 'lane:' .. lane, lanes_of(p, set), ring_of(set)
  if redis.call('HLEN', items) == 0 then redis.call('HSET', state, 'began', now()) end
  redis.call('HSET', items, id, value)
  redis.call('HINCRBY', counts, p, 1)
  redis.call('ZADD', since, 0, age_mark(id, value))
  if where == 'end' then
    redis.call('RPUSH', list, id)
    redis.call('ZADD', its_ring, 'NX', place_at_end(), p)
    redis.call('ZADD', lanes, 'NX', place_at_end(), lane)
  else
    local before
    for _, other in ipairs(where == 'in turn' and redis.call('LRANGE', list, 0, ASIDE_AT_ONCE - 1) or {}) do
      if age_mark(other, redis.call('HGET', items, other) or '') > age_mark(id, value) then break end
      before = other
    end
    if before then redis.call('LINSERT', list, 'AFTER', before, id) else redis.call('LPUSH', list, id) end
    redis.call('ZADD', its_ring, place_in_front(its_ring), p)
    redis.call('ZADD', lanes, place_in_front(lanes), lane)
  end
  if set ~= '' then
    redis.call('SADD', sets, set)
    keep(sets)
  end
  keep(items, counts, list, its_ring, lanes, state, since)
end

local function leave_ring(lane, p)
  local set = set_of(lane)
  redis.call('ZREM', lanes_of(p, set), lane)
  if redis.call('ZCARD', lanes_of(p, set)) > 0 then return end
  redis.call('ZREM', ring_of(set), p)
  if set ~= '' and redis.call('EXISTS', ring_of(set)) == 0 then redis.call('SREM', sets, set) end
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
  local rest = redis.call('HLEN', items)
  if rest == 0 then
    redis.call('DEL', wake, since)
    for _, offers in ipairs(set_of(lane) ~= '' and kinds_of_takers() or {}) do
      redis.call('DEL', wake .. ':' .. offers)
    end
  end
  return value, lane, p, rest
end

-- What was handed over, back where it waits: its set of labels; or nil when it is held no more.
local function put_back(receipt, where)
  local id, value = string.match(redis.call('HGET', held_items, receipt) or '', '^(%S+) (.*)$')
  redis.call('ZREM', held, receipt)
  redis.call('HDEL', held_items, receipt)
  if not id or redis.call('HEXISTS', items, id) == 1 then return nil end
  enter(id, value, where)
  return set_of(string.match(value, '^(%S+) '))
end

-- ARGV from `first` on: receipts and execution ids of what was started, or need not be. One that came back meanwhile,
-- since it was held for too long, is forgotten too.
local function forget_done(first)
  if not ARGV[first] then return end
  for i = first, #ARGV, 2 do
    redis.call('HDEL', held_items, ARGV[i])
    if redis.call('ZREM', held, ARGV[i]) == 0 then forget(ARGV[i + 1]) end
  end
  -- So many have left since the last did; the mean over several is right.
  local at, count = now(), math.floor((#ARGV - first + 1) / 2)
  local took = math.floor((at - tonumber(redis.call('HGET', state, 'began') or at)) / count)
  for _ = 1, math.min(count, TURNS) do redis.call('LPUSH', turns, took) end
  redis.call('LTRIM', turns, 0, TURNS - 1)
  redis.call('HSET', state, 'began', at)
  keep(turns, state)
end
""".replace("MAX_TOKENS", str(MAX_TOKENS))
    .replace("ASIDE_AT_ONCE", str(_ASIDE_AT_ONCE))
    .replace("TURNS", str(_TURNS))
)
