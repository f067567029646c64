"""Fixtures: two servers and two workers that tests share which leave them as they were."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.replicas.harness import DEPLOY, need, nginx
from tests.integration.workers.checking import Witness
from tests.integration.workers.harness import Fleet, fleet
from tests.redis_server import running_redis


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    need("redis-server")
    directory = tmp_path_factory.mktemp("fleet")
    # What is asked to end has the time for its last words, however busy the machine is.
    with running_redis() as redis, fleet(redis, directory, SANDBOX_KILL_GRACE_SECONDS="30") as started:
        yield started


@pytest.fixture
def witness() -> Iterator[Witness]:
    """Not in /tmp: every sandbox has one of its own."""
    with tempfile.TemporaryDirectory(prefix="sandbox-test-", dir="/var/tmp") as directory:
        yield Witness(Path(directory) / "began")


@pytest.fixture(scope="session")
def front_door(shared_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `/mcp` behind nginx, round robin over the servers of the shared fleet."""
    configuration = DEPLOY / "nginx" / "round-robin.conf"
    with nginx(configuration, shared_fleet.servers, tmp_path_factory.mktemp("nginx")) as address:
        yield f"{address}/mcp"
