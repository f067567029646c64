"""The time in Redis scripts: that of the server, which is one for all who share it, whatever their own clocks say."""

from __future__ import annotations

from typing import Final

REDIS_TIME: Final = """
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""
"""Lua: `now()` is the time in milliseconds since 1970."""
