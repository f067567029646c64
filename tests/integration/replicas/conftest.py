"""Fixtures: three replicas that tests share which leave them as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.replicas.harness import DEPLOY, Replica, need, nginx, replicas, two_with_tokens
from tests.redis_server import RedisServer, running_redis


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def replica_redis() -> Iterator[RedisServer]:
    need("redis-server")
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def three(replica_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with replicas(replica_redis, tmp_path_factory.mktemp("replicas")) as started:
        yield started


@pytest.fixture(scope="session")
def pair(replica_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    """Two with tokens for several callers, and with sessions for older clients."""
    with two_with_tokens(replica_redis, tmp_path_factory.mktemp("pair")) as started:
        yield started


@pytest.fixture(scope="session")
def balanced(three: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `/mcp` behind nginx, round robin."""
    with nginx(DEPLOY / "nginx" / "round-robin.conf", three, tmp_path_factory.mktemp("nginx")) as address:
        yield f"{address}/mcp"
