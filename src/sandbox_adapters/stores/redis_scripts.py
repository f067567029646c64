"""The scripts of RedisStateStore, one for each promise that must hold at once. They answer with a word, then values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sandbox_adapters.redis_connection import LuaScript
from sandbox_adapters.redis_time import REDIS_TIME
from sandbox_adapters.stores.redis_lua import PRELUDE, SWEPT_AT_ONCE

WANTED_MS: Final = 12_000
"""How long releases are told after a place was refused: over twice the time after which who waits asks again."""

_CREATE: Final = """
local id, document, nonce, may_wait_ms = ARGV[4], ARGV[5], ARGV[10], tonumber(ARGV[11])
local m = {id = id, st = 'pending', seq = 0, p = ARGV[6], s = ARGV[7], g = ARGV[8], k = ARGV[9]}
if m.k ~= '' then
  local first = redis.call('GET', idempotency_key(m))
  if first then
    local document_of_first = redis.call('GET', (keys_of(first)))
    local found = document_of_first and find(first)
    if found then
      local _, _, meta_of_first = keys_of(first)
      redis.call('HSET', meta_of_first, 'told', 1)
      touch(found)
      return {'FIRST', first, document_of_first}
    end
  end
end
local doc, _, meta = keys_of(id)
if redis.call('EXISTS', doc, meta) > 0 then
  if redis.call('HGET', meta, 'c') == nonce then return {'OK'} end
  return {'TAKEN'}
end
redis.call('SET', doc, document)
redis.call('HSET', meta, 'st', 'pending', 'tok', 0, 'seq', 0, 'p', m.p, 's', m.s, 'g', m.g, 'k', m.k, 'c', nonce)
if m.k ~= '' then redis.call('SET', idempotency_key(m), id) end
index(m)
if m.g ~= '' then redis.pcall('SADD', session_set(m), id) end
await_claim(m, may_wait_ms)
due(m)
touch(m)
sweep(SWEPT_AT_ONCE)
return {'OK'}
""".replace("SWEPT_AT_ONCE", str(SWEPT_AT_ONCE))

_DISCARD: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
local _, _, meta = keys_of(m.id)
if m.st ~= 'pending' or redis.call('HEXISTS', meta, 'told') == 1 then return {'OK'} end
redis.call('DEL', keys_of(m.id))
if m.k ~= '' then redis.call('DEL', idempotency_key(m)) end
unlist(m)
redis.call('PUBLISH', ns .. 'wake:' .. m.id, 'gone')
return {'OK'}
"""

_LOAD: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
touch(m)
return {'OK', redis.call('GET', (keys_of(m.id)))}
"""

_LOOK: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
touch(m)
return {'OK', m.seq, m.st}
"""

_CLAIM: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
local lease_ms, old, new, nonce = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
if m.cl == nonce and m.st == 'running' then return {'OK', m.tok, m.seq} end
if m.st ~= 'pending' then
  touch(m)
  return {'REFUSED', 'it is ' .. m.st}
end
if is_overdue(m) then return {'REFUSED', 'its time in the queue is over'} end
local doc, _, meta = keys_of(m.id)
local document = redis.call('GET', doc)
if document ~= old then
  touch(m)
  return {'DOCUMENT', document}
end
lease(m, lease_ms)
redis.call('SET', doc, new)
redis.call('HSET', meta, 'st', 'running', 'tok', m.tok + 1, 'cl', nonce)
move(m, 'running')
touch(m)
return {'OK', m.tok + 1, m.seq}
"""

_SEIZE: Final = """
local m, why = find(ARGV[4])
if not m then
  -- Nobody can end it any more. Left in, it would stand before those whose turn it is.
  redis.pcall('ZREM', leases, ARGV[4])
  return {why}
end
local lease_ms, nonce = tonumber(ARGV[5]), ARGV[6]
local doc, _, meta = keys_of(m.id)
if m.cl ~= nonce then
  local until_ms = redis.call('ZSCORE', leases, m.id)
  touch(m)
  if m.st ~= 'running' then return {'REFUSED', 'it is ' .. m.st} end
  if until_ms and tonumber(until_ms) > now() then return {'REFUSED', 'its lease still holds'} end
  lease(m, lease_ms)
  m.tok = m.tok + 1
  redis.call('HSET', meta, 'tok', m.tok, 'cl', nonce)
end
return {'OK', m.tok, m.seq, redis.call('GET', doc)}
"""

_RENEW: Final = """
local lease_ms, held, at = tonumber(ARGV[4]), {}, now()
for i = 5, #ARGV, 3 do
  local m = find(ARGV[i])
  if m and m.st == 'running' and m.tok == tonumber(ARGV[i + 1]) then
    -- Keeping keys alive comes first: after such a write Redis lets a script go on that is out of memory.
    m.left = nil
    touch(m)
    lease(m, lease_ms)
    local node = ARGV[i + 2]
    local member = m.id .. '|' .. node
    local scopes = {ns .. 'places:node:' .. node, ns .. 'places:principal:' .. m.p}
    if m.s ~= '' then scopes[3] = ns .. 'places:session:' .. m.p .. ':' .. m.s end
    local until_ms = redis.pcall('ZSCORE', scopes[1], member)
    if type(until_ms) == 'string' and tonumber(until_ms) > at then
      for _, scope in ipairs(scopes) do
        redis.pcall('ZADD', scope, 'XX', at + lease_ms, member)
        keep(scope, lease_ms + ttl)
      end
    end
    held[#held + 1] = (i - 5) / 3
  end
end
return held
"""

_LAPSED: Final = """
-- Every node asks this all the time, mostly while nothing runs: then it is one command.
if #redis.call('ZRANGE', leases, 0, 0) == 0 then return {} end
return redis.call('ZRANGEBYSCORE', leases, '-inf', now(), 'LIMIT', 0, tonumber(ARGV[4]))
"""

_RESERVE: Final = """
-- With the keys of a document and its meta hash: answers with the document of what is pending, since a claim follows.
local member, lease_ms, at = ARGV[4], tonumber(ARGV[5]), now()
local count = (#ARGV - 5) / 2
for i = 1, count do redis.call('ZREMRANGEBYSCORE', ARGV[4 + 2 * i], '-inf', at) end
if not redis.call('ZSCORE', ARGV[6], member) then
  for i = 1, count do
    if redis.call('ZCARD', ARGV[4 + 2 * i]) >= tonumber(ARGV[5 + 2 * i]) then
      -- A node knows of its own places; of those that others hold it wants to hear.
      if i > 1 then redis.pcall('SET', ns .. 'places:wanted', 1, 'PX', WANTED_MS) end
      return i
    end
  end
end
for i = 1, count do
  redis.call('ZADD', ARGV[4 + 2 * i], at + lease_ms, member)
  keep(ARGV[4 + 2 * i], lease_ms + ttl)
end
if KEYS[1] and redis.pcall('HGET', KEYS[2], 'st') == 'pending' then
  local document = redis.pcall('GET', KEYS[1])
  if type(document) == 'string' then return document end
end
return 0
""".replace("WANTED_MS", str(WANTED_MS))

_RELEASE: Final = """
local freed = 0
for i = 5, #ARGV do freed = freed + redis.call('ZREM', ARGV[i], ARGV[4]) end
if freed > 0 and redis.call('EXISTS', ns .. 'places:wanted') == 1 then
  redis.call('PUBLISH', ns .. 'wake:places', '')
end
return 0
"""

_PROBE: Final = """
redis.call('SET', ns .. 'probe', now(), 'PX', ttl)
-- Nobody listens, and a user of Redis may have no channel at all unless it was given some.
redis.call('PUBLISH', ns .. 'wake:probe', '')
return 0
"""

_APPEND: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
local token, expected, batch, document, status = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
if m.b == batch then return {'OK', m.seq} end
if m.st ~= 'running' or m.tok ~= token then return {'LOST'} end
local doc, output, meta = keys_of(m.id)
if redis.call('LLEN', output) ~= m.seq then
  -- It will never end, so it need not be seized, and kept alive, again and again.
  redis.pcall('ZREM', leases, m.id)
  return {'TORN'}
end
if m.seq ~= expected then return {'SEQ', m.seq} end
push(m, output, 10)
if document ~= '' then redis.call('SET', doc, document, 'KEEPTTL') end
redis.call('HSET', meta, 'seq', m.seq, 'b', batch)
if status ~= '' and status ~= m.st then
  local may_wait_ms = string.match(status, '^pending (%d+)$')
  if may_wait_ms then status = 'pending' end
  redis.call('HSET', meta, 'st', status)
  redis.pcall('ZREM', leases, m.id)
  move(m, status)
  if may_wait_ms then await_claim(m, tonumber(may_wait_ms)) end
end
touch(m)
tell(m)
return {'OK', m.seq}
"""

_FINISH: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
local nonce, document, status, only_overdue, expected = ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1', tonumber(ARGV[9])
if m.cl == nonce then return {'OK', m.seq} end
if m.st ~= 'pending' then
  touch(m)
  return {'REFUSED', 'it is ' .. m.st}
end
if status == '' then
  touch(m)
  return {'ILLEGAL'}
end
if only_overdue and not is_overdue(m) then return {'REFUSED', 'its time in the queue is not over'} end
local doc, output, meta = keys_of(m.id)
if redis.call('LLEN', output) ~= m.seq then return {'TORN'} end
if m.seq ~= expected then return {'SEQ', m.seq} end
push(m, output, 10)
redis.call('SET', doc, document)
redis.call('HSET', meta, 'seq', m.seq, 'st', status, 'cl', nonce)
redis.pcall('ZREM', leases, m.id)
move(m, status)
touch(m)
tell(m)
return {'OK', m.seq}
"""

_READ: Final = """
local m, why = find(ARGV[4])
if not m then return {why} end
touch(m)
local doc, output = keys_of(m.id)
local after, most, budget, backward = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
if redis.call('LLEN', output) ~= m.seq then return {'TORN'} end
local document = redis.call('GET', doc)
local last = tonumber(ARGV[9])
if last < 0 or last > m.seq then last = m.seq end
local lines, taken, step = {}, 0, 4
local low, high = after, last
while low < high and #lines < most and taken < budget do
  local count = math.min(step, high - low, most - #lines)
  local part
  if backward then
    part = redis.call('LRANGE', output, high - count, high - 1)
    high = high - count
    for i = #part, 1, -1 do
      lines[#lines + 1] = part[i]
      taken = taken + #part[i]
    end
  else
    part = redis.call('LRANGE', output, low, low + count - 1)
    low = low + count
    for i = 1, #part do
      lines[#lines + 1] = part[i]
      taken = taken + #part[i]
    end
  end
  step = math.max(1, math.min(1000, math.floor((budget - taken) * #lines / taken) + 1))
end
return {'OK', document, m.seq, lines}
"""

_LIST: Final = """
local m = {p = ARGV[4], s = ARGV[5], g = ARGV[6]}
local limit, before, budget = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local position = before == '' and '+' or '(' .. before
local found, size, seen, most, last = {}, 0, 0, 1000 + 2 * limit, ''
local scope = ns .. 'index:' .. m.p .. ':' .. (m.s == '' and '*' or m.s) .. ':'
while true do
  local ids = {}
  for i = 10, #ARGV do
    local part = redis.call('ZREVRANGEBYLEX', scope .. ARGV[i], position, '-', 'LIMIT', 0, limit + 1)
    for _, id in ipairs(part) do ids[#ids + 1] = id end
  end
  if #ids == 0 then return {'END', '', found} end
  table.sort(ids, function(a, b) return a > b end)
  for i = 1, math.min(#ids, limit + 1) do
    local id = ids[i]
    local document = redis.call('GET', (keys_of(id)))
    if id == last then document = nil end
    if document and (#found >= 2 * limit or (size + #document > budget and #found > 0)) then
      return {'MORE', last, found}
    end
    if document then
      found[#found + 1] = id
      found[#found + 1] = document
      size = size + #document
    elseif id ~= last then
      unlist({id = id, p = m.p, s = m.s, g = m.g})
    end
    last = id
    position = '(' .. id
    seen = seen + 1
  end
  if seen >= most then return {'MORE', last, found} end
end
"""


@dataclass(frozen=True, slots=True)
class Scripts:
    """Every script, built for one way to tell the time."""

    create: LuaScript
    discard: LuaScript
    load: LuaScript
    look: LuaScript
    claim: LuaScript
    seize: LuaScript
    renew: LuaScript
    lapsed: LuaScript
    reserve: LuaScript
    release: LuaScript
    probe: LuaScript
    append: LuaScript
    finish: LuaScript
    read: LuaScript
    list: LuaScript


@lru_cache
def scripts(time: str = REDIS_TIME) -> Scripts:
    """Return the scripts. `time` is Lua that defines `now()`, milliseconds; tests give their own."""

    def script(body: str) -> LuaScript:
        return LuaScript(time + PRELUDE + body)

    return Scripts(
        create=script(_CREATE),
        discard=script(_DISCARD),
        load=script(_LOAD),
        look=script(_LOOK),
        claim=script(_CLAIM),
        seize=script(_SEIZE),
        renew=script(_RENEW),
        lapsed=script(_LAPSED),
        reserve=script(_RESERVE),
        release=script(_RELEASE),
        probe=script(_PROBE),
        append=script(_APPEND),
        finish=script(_FINISH),
        read=script(_READ),
        list=script(_LIST),
    )
