"""What every script of RedisStateStore begins with: time, the keys of an execution, how they live and are indexed.

`leases` has what somebody must look at when its time is over: running executions by the end of their lease, pending
ones by the end of their time in the queue.

Each execution has, beside the keys that people look at, one hash `meta:{id}` for the scripts: `st` status, `tok`
fencing token, `seq` length of the log, `p` principal, `s` session, `g` the session in the guide's key, `k` idempotency
key, `b` the last batch that was appended, `c` and `cl` who created and claimed it (so that a repetition is told from a
rival). The parts of keys among them are quoted by `key_part`, so no value reaches a key of another kind.

All keys of an execution expire at the same millisecond. Indexes live at least as long as their members. A write that
Redis may refuse (no memory, another type in a key) comes before every other one, so that a script happens wholly or
not at all; what only helps to find an execution is written with `pcall` after it.
"""

from __future__ import annotations

from typing import Final

TOUCHED_MS: Final = 250
"""What an access leaves missing of the whole time to live at most, so that one run's many accesses cost one."""

WAITING_MS: Final = 15_000
"""How long a pending execution is its creator's, which then vouches for what waits in its queue."""

PRELUDE: Final = """
local ns, ttl, run_ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local leases, expiries, waiting = ns .. 'leases', ns .. 'expiries', ns .. 'waiting'
local STATUSES = {'pending', 'running', 'completed', 'failed', 'timeout', 'cancelled'}

local function keys_of(id)
  return ns .. 'execution:' .. id, ns .. 'execution:' .. id .. ':output', ns .. 'meta:' .. id
end

local function indexes_of(m, status)
  local mine = ns .. 'index:' .. m.p .. ':'
  if m.s == '' then return {mine .. '*:' .. status} end
  return {mine .. '*:' .. status, mine .. m.s .. ':' .. status}
end

local function session_set(m)
  return ns .. 'session:' .. m.g .. ':executions'
end

local function idempotency_key(m)
  return ns .. 'key:' .. m.p .. ':' .. m.k
end

-- Let a key that many share live at least so long. It gets an eighth more, so that few calls have to.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left ~= -2 and left < ms then redis.pcall('PEXPIRE', key, ms + math.floor(ms / 8)) end
end

-- The meta hash as a table, and how long its document has left; or nil and why not.
local function find(id)
  local doc, _, meta = keys_of(id)
  local v = redis.call('HMGET', meta, 'st', 'tok', 'seq', 'p', 's', 'g', 'k', 'b', 'c', 'cl')
  local left = redis.call('PTTL', doc)
  if not v[1] and left == -2 then return nil, 'NOT_FOUND' end
  local m = {id = id, st = v[1], tok = tonumber(v[2] or ''), seq = tonumber(v[3] or ''), p = v[4], s = v[5],
             g = v[6], k = v[7], b = v[8], c = v[9], cl = v[10], left = left}
  if left == -2 or not (m.st and m.tok and m.seq and m.p and m.s and m.g and m.k) then return nil, 'TORN' end
  return m
end

-- Give an execution, and all that belongs to it, its whole time again. One that was touched a moment ago has it.
local function touch(m)
  local ms = m.st == 'running' and run_ttl or ttl
  if m.left and m.left > ms - TOUCHED_MS and m.left <= ms then return end
  local doc, output, meta = keys_of(m.id)
  local t = redis.call('TIME')
  local at = t[1] * 1000 + math.floor(t[2] / 1000) + ms
  redis.pcall('PEXPIREAT', doc, at)
  redis.pcall('PEXPIREAT', output, at)
  redis.pcall('PEXPIREAT', meta, at)
  if m.k ~= '' then redis.pcall('PEXPIREAT', idempotency_key(m), at) end
  for _, index in ipairs(indexes_of(m, m.st)) do keep(index, ms) end
  -- Of a session only people read the set, so it is not kept for a week for what runs: each renewal comes by here.
  if m.g ~= '' then keep(session_set(m), ttl) end
  if m.st == 'running' and not redis.pcall('ZSCORE', leases, m.id) then
    redis.pcall('ZADD', leases, 'NX', now(), m.id)
  end
end

local function due_name(m)
  return m.id .. '|' .. m.p .. '|' .. m.s .. '|' .. m.g
end

local function due(m)
  redis.pcall('ZADD', expiries, now() + ttl, due_name(m))
  keep(expiries, run_ttl + ttl)
end

local function index(m)
  for _, name in ipairs(indexes_of(m, m.st)) do redis.pcall('ZADD', name, 0, m.id) end
end

local function unindex(m, status)
  for _, name in ipairs(indexes_of(m, status)) do redis.pcall('ZREM', name, m.id) end
end

-- Forget every trace of an execution but its own keys.
local function unlist(m)
  for _, status in ipairs(STATUSES) do unindex(m, status) end
  if m.g ~= '' then redis.pcall('SREM', session_set(m), m.id) end
  redis.pcall('ZREM', leases, m.id)
  redis.pcall('ZREM', waiting, m.id)
  redis.pcall('ZREM', expiries, due_name(m))
end

-- Clear away a few executions that have expired.
local function sweep(most)
  local found = redis.pcall('ZRANGEBYSCORE', expiries, '-inf', now(), 'LIMIT', 0, most)
  if found.err then return end
  for _, name in ipairs(found) do
    local id, p, s, g = string.match(name, '^([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
    local left = id and redis.call('PTTL', (keys_of(id))) or -2
    if left > 0 then
      redis.pcall('ZADD', expiries, now() + left, name)
    elseif id then
      unlist({id = id, p = p, s = s, g = g})
    else
      redis.pcall('ZREM', expiries, name)
    end
  end
end

-- Enter the status: touch and tell come after it.
local function move(m, status)
  unindex(m, m.st)
  if m.st == 'pending' then redis.pcall('ZREM', waiting, m.id) end
  m.st, m.left = status, nil
  index(m)
  if status ~= 'running' then
    due(m)
    -- Its set may have expired while nobody renewed anything.
    if m.g ~= '' then redis.pcall('SADD', session_set(m), m.id) end
  end
end

-- Let it wait for its claim: so long its creator cares for it, and so long (0: for ever) it may wait at all.
local function await_claim(m, ms)
  local at = now()
  redis.pcall('ZADD', waiting, at + WAITING_MS, m.id)
  keep(waiting, run_ttl)
  if ms > 0 then
    redis.pcall('ZADD', leases, at + ms, m.id)
    keep(leases, run_ttl)
  end
end

local function is_overdue(m)
  local until_ms = redis.call('ZSCORE', leases, m.id)
  return until_ms and tonumber(until_ms) <= now()
end

local function lease(m, ms)
  redis.call('ZADD', leases, now() + ms, m.id)
  keep(leases, run_ttl)
end

-- Tell waiters everywhere how far the log is, and the status.
local function tell(m)
  redis.call('PUBLISH', ns .. 'wake:' .. m.id, m.seq .. ' ' .. m.st)
end

local function push(m, output, first)
  if m.seq == 0 then m.left = nil end -- a new key, which has no time to live yet
  m.seq = m.seq + #ARGV - first + 1
  for start = first, #ARGV, 1000 do
    redis.call('RPUSH', output, unpack(ARGV, start, math.min(start + 999, #ARGV)))
  end
end
""".replace("TOUCHED_MS", str(TOUCHED_MS)).replace("WAITING_MS", str(WAITING_MS))
"""ARGV begins with the namespace, the time to live and that of running executions, both in milliseconds."""

SWEPT_AT_ONCE: Final = 5
"""Expired executions that a creation clears away at most: more than the one it adds."""
