"""What the tests of the store on a real Redis share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.ports.store import Claim
from sandbox_core.testing.samples import NODE, pending
from tests.redis_server import RedisServer

CLOCK = SystemClock()
ANSWER_SECONDS = 20.0
"""What a Redis has for an answer that works, however busy the machine is."""
PATIENT = {"redis_timeout_seconds": ANSWER_SECONDS}
"""The same as a setting."""


@pytest.fixture
def anyio_backend() -> str:
    """Redis works under asyncio only."""
    return "asyncio"


@asynccontextmanager
async def opened(
    server: RedisServer | str,
    *,
    timeout_seconds: float = ANSWER_SECONDS,
    ttl_seconds: float = 3600,
    prefix: str = "",
    starts_here: bool = True,
) -> AsyncIterator[RedisStateStore]:
    """Open a store as one replica has it; without `starts_here` as servers and workers with a shared queue do."""
    url = server if isinstance(server, str) else server.url
    options = RedisOptions(url=SecretStr(url), timeout_seconds=timeout_seconds, prefix=prefix)
    async with (
        RedisConnection(options) as redis,
        RedisStateStore(redis, CLOCK, ttl_seconds=ttl_seconds, starts_here=starts_here) as store,
    ):
        yield store


async def claimed(store: RedisStateStore, lease_seconds: float = 15) -> Claim:
    """Store an execution and claim it."""
    execution = await store.create(pending(CLOCK))
    return await store.claim(execution.id, NODE, lease_seconds=lease_seconds)
