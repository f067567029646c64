"""The scripts of RedisQueue: every change of the queue is one of them, so each happens wholly or not at all.

The keys are told in redis_prelude.
"""

from __future__ import annotations

from typing import Final

from sandbox_adapters.queues.redis_prelude import MAX_TOKENS, PRELUDE
from sandbox_adapters.redis_connection import LuaScript

MAX_SETS: Final = 64
"""Different sets of labels that wait at most; a put with one more is refused as by a full queue."""

MAX_KINDS: Final = 32
"""Different offers of takers that are woken by tokens; takers with one more find out when they look by themselves."""

KIND_KNOWN_SECONDS: Final = 60
"""How long takers are woken after their last look; several times as long as they wait to look again."""

IN_FRONT, IN_TURN = "in front", "in turn"
"""Where what was handed over goes back to: in front of everything, or only of what came later to its lane."""

_RECLAIMED_AT_ONCE: Final = 20


def _script(body: str) -> LuaScript:
    return LuaScript(PRELUDE + body)


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
enter(id, value, 'end')
wake_one(set, MAX_TOKENS)
return {0, depth + 1, 0}
""".replace("MAX_SETS", str(MAX_SETS)).replace("MAX_TOKENS", str(MAX_TOKENS))
)

HAND_OVER: Final = _script(
    """
-- ... receipt, for how long it is held in ms, what the taker offers, receipt of what it has refused just now or '', how
-- many lanes are not to be asked about, those, and what is done (see forget_done).
-- Answers {1, id, lane, JSON, how many wait still, ms until something comes back}, or {0, ms until then or -1}. Asked
-- again with the same receipt: the same item.
local refused, lanes_refused, is_refused = ARGV[6], tonumber(ARGV[7]), false
if refused ~= '' then is_refused = put_back(refused, 'in turn') ~= nil end
forget_done(8 + lanes_refused)
-- A fleet that does nothing asks this all the time, so then it is two commands and does not look at the clock.
local first, depth = redis.call('ZRANGE', held, 0, 0, 'WITHSCORES'), redis.call('HLEN', items)
if depth == 0 and not first[2] and ARGV[5] == '' then return {0, -1} end
local receipt, at = ARGV[3], now()
local back_in = first[2] and math.max(0, tonumber(first[2]) - at) or -1
for _, lapsed in ipairs(back_in == 0 and redis.call('ZRANGE', held, 0, RECLAIMED) or {}) do
  if tonumber(redis.call('ZSCORE', held, lapsed)) > at then break end
  local set = put_back(lapsed, 'in turn')
  if set then
    depth = depth + 1
    wake_one(set, MAX_TOKENS)
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

local function handed_over(value, rest)
  local id, lane, json = string.match(value, '^(%S+) (%S+) (.*)$')
  return {1, id, lane, json, rest, math.max(0, tonumber(redis.call('ZRANGE', held, 0, 0, 'WITHSCORES')[2]) - at)}
end
local value_before = first[2] and redis.call('HGET', held_items, receipt)
if value_before then return handed_over(value_before, depth) end
if depth == 0 then return nothing() end

local mine, offered = {''}, labels_in(ARGV[5])
for _, set in ipairs(ARGV[5] ~= '' and redis.call('SMEMBERS', sets) or {}) do
  if covers(offered, set) then mine[#mine + 1] = set end
end

local skipped = {}
for i = 8, 7 + lanes_refused do skipped[ARGV[i]] = true end

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

local function next_id()
  local keys, seen = {}, {}
  for n, set in ipairs(mine) do keys[n] = ring_of(set) end
  for p in merged(keys) do
    local lane, id
    if not seen[p] then lane, id = offer(p) end
    if lane then return id end
    seen[p] = true
  end
  return nil
end

local id = next_id()
if not id then return nothing() end
local value, lane, p, rest = forget(id)
redis.call('ZADD', held, at + ARGV[4], receipt)
redis.call('HSET', held_items, receipt, id .. ' ' .. value)
keep(held, held_items)
if rest > 0 then
  local place, sets_waiting = place_at_end(), redis.call('SMEMBERS', sets)
  redis.call('ZADD', ring, 'XX', place, p)
  for _, set in ipairs(sets_waiting) do redis.call('ZADD', ring_of(set), 'XX', place, p) end
  redis.call('ZADD', lanes_of(p, set_of(lane)), 'XX', place_at_end(), lane)
  wake_for_the_rest(sets_waiting, rest, is_refused or lanes_refused > 0 or ARGV[5] ~= '')
end
return handed_over(id .. ' ' .. value, rest)
""".replace("RECLAIMED", str(_RECLAIMED_AT_ONCE))
    .replace("MAX_KINDS", str(MAX_KINDS))
    .replace("MAX_TOKENS", str(MAX_TOKENS))
    .replace("KIND_KNOWN_MS", str(KIND_KNOWN_SECONDS * 1000))
)

DONE: Final = _script("""
-- ... what is done (see forget_done).
forget_done(3)
return 0
""")

GIVE_BACK: Final = _script(
    """
-- ... IN_FRONT or IN_TURN, receipts.
for i = 4, #ARGV do
  local set = put_back(ARGV[i], ARGV[3])
  if set then wake_one(set, MAX_TOKENS) end
end
return 0
""".replace("MAX_TOKENS", str(MAX_TOKENS))
)

RENEW: Final = _script("""
-- ... how long in ms, receipts.
local at = now()
for i = 4, #ARGV do redis.call('ZADD', held, 'XX', at + ARGV[3], ARGV[i]) end
keep(held, held_items)
return 0
""")

REMOVE: Final = _script("""
-- ... execution id. Answers 0 also for one that was handed over: if a taker asks about it, it comes back no more.
if forget(ARGV[3]) then return 1 end
local of_takers = redis.call('HGETALL', held_items)
for i = 1, #of_takers, 2 do
  if string.match(of_takers[i + 1], '^(%S+) ') == ARGV[3] then
    redis.call('HDEL', held_items, of_takers[i])
    redis.call('ZREM', held, of_takers[i])
  end
end
return 0
""")

DEPTH: Final = _script("""
-- Answers how many wait, if the queue would take one more now: Redis may be full, or read-only.
redis.call('SET', Q .. 'probe', now(), 'PX', KEEP)
return redis.call('HLEN', items)
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

WAITING: Final = _script("""
-- ... execution ids. Answers those that wait, or were handed over and may come back.
local of_takers, found = {}, {}
for _, value in ipairs(redis.call('HVALS', held_items)) do of_takers[string.match(value, '^(%S+) ')] = true end
for i = 3, #ARGV do
  if of_takers[ARGV[i]] or redis.call('HEXISTS', items, ARGV[i]) == 1 then found[#found + 1] = ARGV[i] end
end
return found
""")

PASS_ON: Final = _script(
    """
-- ... offers. A token for takers that offer this, which came to one that has something to do already.
if redis.call('HLEN', items) > 0 then push_token(ARGV[3], MAX_TOKENS) end
return 0
""".replace("MAX_TOKENS", str(MAX_TOKENS))
)
