"""RedisStateStore keeps the StateStore contract, against a real Redis. redis-py works under asyncio only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_core.testing.store_contract import StateStoreContract
from sandbox_core.testing.store_harness import StoreHarness
from tests.redis_server import RedisServer

from .redis_harness import redis_harness


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestRedisStateStore(StateStoreContract):
    """With the keys of the guide."""

    @pytest.fixture
    async def harness(self, anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[StoreHarness]:
        async with redis_harness(redis_server) as harness:
            yield harness


class TestRedisStateStoreWithHashTags(StateStoreContract):
    """With a prefix that keeps all keys in one slot of a cluster."""

    @pytest.fixture
    async def harness(self, anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[StoreHarness]:
        async with redis_harness(redis_server, prefix="team", hash_tag=True) as harness:
            yield harness
