"""RedisStateStore keeps the StateStore contract, against a real Redis. redis-py works under asyncio only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sandbox_core.testing.store_contract import StateStoreContract
from sandbox_core.testing.store_harness import StoreHarness
from tests.redis_server import RedisServer, need_redis, running_cluster

from .redis_harness import NOW_KEY, redis_harness


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestRedisStateStore(StateStoreContract):
    """With the keys of the guide."""

    @pytest.fixture
    async def harness(self, anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[StoreHarness]:
        async with redis_harness(redis_server) as harness:
            yield harness


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisServer]:
    need_redis()
    with running_cluster() as server:
        yield server


class TestRedisStateStoreInACluster(StateStoreContract):
    """With hash tags, on a node of a Redis Cluster, which refuses what names keys of several slots."""

    @pytest.fixture
    async def harness(self, anyio_backend: str, cluster: RedisServer) -> AsyncIterator[StoreHarness]:
        async with redis_harness(cluster, prefix="team", hash_tag=True) as harness:
            yield harness
        keys = {key for key in cluster.ask("KEYS", "*") if key != NOW_KEY.encode()}
        assert {cluster.ask("CLUSTER", "KEYSLOT", key) for key in keys} <= {cluster.ask("CLUSTER", "KEYSLOT", "{team}")}
