"""The scripts of RedisQueue: every change of the queue is one of them, so each happens wholly or not at all.

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
| `asked` | hash, lane -> `question until`: a taker asks its admission about the lane's head |
| `held` | sorted set of receipts that were handed over, scored by when they are handed out again |
| `held:items` | hash, receipt -> `execution-id lane {json}` |
| `wake` | list of tokens; a taker that has nothing to do pops one, blocking |
| `wake:{offers}` | such a list for the takers that offer these labels |
| `ring:{labels}`, `lanes:{principal}|{labels}` | `ring` and `lanes:{principal}` of what needs these labels |
| `sets` | set of the sets of labels that something waits with |
| `kinds` | hash, what an idle taker offers -> until when that is known; only of takers that offer labels |
| `state`, `turns` | a counter for places in the rings, and how long the last hand-overs took, ms |

Every key lives as long as pending executions may at least, and longer only when it is used again.
"""

from __future__ import annotations

from typing import Final

from sandbox_adapters.redis_connection import LuaScript

MAX_TOKENS: Final = 64
"""Tokens that wait at most: each wakes one taker, and each hand-over wakes the next when more waits."""

MAX_SETS: Final = 64
"""Different sets of labels that wait at most; a put with one more is refused as by a full queue."""

MAX_KINDS: Final = 32
"""Different offers of takers that are woken by tokens; takers with one more find out when they look by themselves."""

KIND_KNOWN_SECONDS: Final = 60
"""How long takers are woken after their last look; several times as long as they wait to look again."""

_RECLAIMED_AT_ONCE: Final = 20

_PRELUDE: Final = """
-- ARGV: namespace, life of the keys in ms, ...
local Q, KEEP = ARGV[1] .. 'queue:', ARGV[2]
local items, counts, ring, asked = Q .. 'items', Q .. 'counts', Q .. 'ring', Q .. 'asked'
local held, held_items, wake, state, turns = Q .. 'held', Q .. 'held:items', Q .. 'wake', Q .. 'state', Q .. 'turns'
local since, sets, kinds = Q .. 'since', Q .. 'sets', Q .. 'kinds'

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

-- Wake one taker of each kind for which something waits, unless one is woken already.
local function wake_for_the_rest(sets_waiting)
  if redis.call('EXISTS', ring) == 1 then push_token('', 1) end
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

local function enter(id, value, in_front)
  local lane = string.match(value, '^(%S+) ')
  local p, set = principal_of(lane), set_of(lane)
  local list, lanes, its_ring = Q .. 'lane:' .. lane, lanes_of(p, set), ring_of(set)
  if redis.call('HLEN', items) == 0 then redis.call('HSET', state, 'began', now()) end
  redis.call('HSET', items, id, value)
  redis.call('HINCRBY', counts, p, 1)
  redis.call('ZADD', since, 0, age_mark(id, value))
  if in_front then
    redis.call('LPUSH', list, id)
    redis.call('ZADD', its_ring, place_in_front(its_ring), p)
    redis.call('ZADD', lanes, place_in_front(lanes), lane)
  else
    redis.call('RPUSH', list, id)
    redis.call('ZADD', its_ring, 'NX', place_at_end(), p)
    redis.call('ZADD', lanes, 'NX', place_at_end(), lane)
  end
  if set ~= '' then
    redis.call('SADD', sets, set)
    keep(sets)
  end
  keep(items, counts, list, its_ring, lanes, state, since)
  wake_one(set, MAX_TOKENS)
end

local function leave_ring(lane, p)
  local set = set_of(lane)
  redis.call('HDEL', asked, lane)
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
""".replace("MAX_TOKENS", str(MAX_TOKENS))


def _script(body: str) -> LuaScript:
    return LuaScript(_PRELUDE + body)


PUT: Final = _script(
    """
-- ... execution id, lane and JSON, principal, most in all, most of one. Answers how many wait, and the mean turn in ms
-- (-1: unknown), after 0 for done, 1 for full, 2 for too many of this principal, 3 for too many sets of labels.
local id, value, p, most, most_of_one = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('HEXISTS', items, id) == 1 then return {0, 0, 0} end
local depth, mine = redis.call('HLEN', items), tonumber(redis.call('HGET', counts, p) or '0')
local set = set_of(string.match(value, '^(%S+) '))
local is_one_more = set ~= '' and redis.call('SISMEMBER', sets, set) == 0 and redis.call('SCARD', sets) >= MAX_SETS
if depth >= most or mine >= most_of_one or is_one_more then
  local last, sum = redis.call('LRANGE', turns, 0, -1), 0
  for _, ms in ipairs(last) do sum = sum + ms end
  local mean = -1
  if #last > 0 then
    local present = depth > 0 and now() - tonumber(redis.call('HGET', state, 'began') or now()) or 0
    mean = math.max(present, math.floor(sum / #last))
  end
  if depth >= most then return {1, depth, mean} end
  if mine >= most_of_one then return {2, mine, mean} end
  return {3, MAX_SETS, mean}
end
enter(id, value, false)
return {0, depth + 1, 0}
""".replace("MAX_SETS", str(MAX_SETS))
)

CHOOSE: Final = _script(
    """
-- ... question, how long it may take in ms, what the taker offers, lanes that are not to be asked about. Answers
-- {1, id, lane, JSON}, or {0, ms until something that was handed over comes back or -1}. Asked again with the same
-- question: the same answer.
-- A fleet that does nothing asks this all the time, so then it is two commands and does not look at the clock.
local first, depth = redis.call('ZRANGE', held, 0, 0, 'WITHSCORES'), redis.call('HLEN', items)
if depth == 0 and not first[2] and ARGV[5] == '' then return {0, -1} end
local question, at = ARGV[3], now()
local back_in = first[2] and math.max(0, tonumber(first[2]) - at) or -1
for _, receipt in ipairs(back_in == 0 and redis.call('ZRANGE', held, 0, RECLAIMED) or {}) do
  if tonumber(redis.call('ZSCORE', held, receipt)) > at then break end
  local id, value = string.match(redis.call('HGET', held_items, receipt) or '', '^(%S+) (.*)$')
  redis.call('ZREM', held, receipt)
  redis.call('HDEL', held_items, receipt)
  if id and redis.call('HEXISTS', items, id) == 0 then
    enter(id, value, true)
    depth = depth + 1
  end
end
local function nothing()
  local offers = ARGV[5]
  if offers ~= '' and (redis.call('HEXISTS', kinds, offers) == 1 or #kinds_of_takers() < MAX_KINDS) then
    redis.call('HSET', kinds, offers, at + KIND_KNOWN_MS)
    keep(kinds)
  end
  return {0, back_in}
end
if depth == 0 then return nothing() end

local mine, offered = {''}, labels_in(ARGV[5])
for _, set in ipairs(ARGV[5] ~= '' and redis.call('SMEMBERS', sets) or {}) do
  if covers(offered, set) then mine[#mine + 1] = set end
end

local skipped, busy = {}, {}
for i = 6, #ARGV do skipped[ARGV[i]] = true end
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
    i = i + 2
    if i > #page then
      if start > 0 and #page < 200 then return nil end
      page, i = redis.call('ZRANGE', key, start, start + 99, 'WITHSCORES'), 1
      start = start + 100
    end
    return page[i], tonumber(page[i + 1] or '0')
  end
end

-- The members of several sorted sets, the lowest score first.
local function merged(keys)
  if #keys == 1 then return pages(keys[1]) end
  local sources, members, scores = {}, {}, {}
  for n, key in ipairs(keys) do
    sources[n] = pages(key)
    members[n], scores[n] = sources[n]()
  end
  return function()
    local first
    for n = 1, #keys do
      if members[n] and (not first or scores[n] < scores[first]) then first = n end
    end
    if not first then return nil end
    local member = members[first]
    members[first], scores[first] = sources[first]()
    return member
  end
end

local function offer(p)
  local keys = {}
  for n, set in ipairs(mine) do keys[n] = lanes_of(p, set) end
  for lane in merged(keys) do
    if not skipped[lane] then
      local id = head(lane, p)
      if id then return lane, id end
    end
  end
  return nil
end

local function next_lane(is_busy)
  local keys, seen = {}, {}
  for n, set in ipairs(mine) do keys[n] = ring_of(set) end
  for p in merged(keys) do
    if not seen[p] and (busy[p] or false) == is_busy then
      local lane, id = offer(p)
      if lane then return lane, id end
    end
    seen[p] = true
  end
  return nil
end

local lane, id = next_lane(false)
if not lane then lane, id = next_lane(true) end
if lane then
  redis.call('HSET', asked, lane, question .. ' ' .. string.format('%.0f', at + ARGV[4]))
  local set = set_of(lane)
  keep(items, counts, ring_of(set), asked, state, since, lanes_of(principal_of(lane), set), Q .. 'lane:' .. lane)
  if set ~= '' then keep(sets) end
  return {1, id, lane, string.match(redis.call('HGET', items, id), '^%S+ (.*)$')}
end
return nothing()
""".replace("RECLAIMED", str(_RECLAIMED_AT_ONCE))
    .replace("MAX_KINDS", str(MAX_KINDS))
    .replace("KIND_KNOWN_MS", str(KIND_KNOWN_SECONDS * 1000))
)

HAND_OVER: Final = _script("""
-- ... question, execution id, receipt, how long it is held in ms. What was removed during the question goes over too:
-- its claim will be refused.
local question, id, receipt, at = ARGV[3], ARGV[4], ARGV[5], now()
local value, lane, p, rest = forget(id)
if not value then return 0 end
local mark = redis.call('HGET', asked, lane)
if mark and string.match(mark, '^(%S+)') == question then redis.call('HDEL', asked, lane) end
redis.call('ZADD', held, at + ARGV[6], receipt)
redis.call('HSET', held_items, receipt, id .. ' ' .. value)
redis.call('LPUSH', turns, at - tonumber(redis.call('HGET', state, 'began') or at))
redis.call('LTRIM', turns, 0, 15)
redis.call('HSET', state, 'began', at)
keep(held, held_items, turns, state)
if rest > 0 then
  local place, sets_waiting = place_at_end(), redis.call('SMEMBERS', sets)
  redis.call('ZADD', ring, 'XX', place, p)
  for _, set in ipairs(sets_waiting) do redis.call('ZADD', ring_of(set), 'XX', place, p) end
  redis.call('ZADD', lanes_of(p, set_of(lane)), 'XX', place_at_end(), lane)
  wake_for_the_rest(sets_waiting)
end
return 1
""")

WITHDRAW: Final = _script(
    """
-- ... question: it is not asked any more, and others may ask it.
local marks = redis.call('HGETALL', asked)
for i = 1, #marks, 2 do
  if string.match(marks[i + 1], '^(%S+)') == ARGV[3] then
    redis.call('HDEL', asked, marks[i])
    wake_one(set_of(marks[i]), MAX_TOKENS)
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
-- ... offers. A token for takers that offer this, which came to one that has something to do already.
if redis.call('HLEN', items) > 0 then push_token(ARGV[3], MAX_TOKENS) end
return 0
""".replace("MAX_TOKENS", str(MAX_TOKENS))
)
