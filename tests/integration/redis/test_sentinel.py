"""The store through Sentinel: who the master is, is asked of it, and again after a failover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr
from redis.exceptions import ResponseError

from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.testing.samples import NODE, pending, printed
from tests.integration.redis.conftest import ANSWER_SECONDS, CLOCK
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio
_BOUND_SECONDS = 60


@contextmanager
def watching(master: RedisServer, directory: Path) -> Iterator[RedisServer]:
    """Run a Sentinel. It looks for replicas at once, and then every 10 s; it takes no slow master for a dead one."""
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds main 60000\nsentinel failover-timeout main 2000\n"
    )
    with running_redis(sentinel=configuration) as server:
        yield server


@pytest.fixture
def sentinel(own_redis: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """Watch `own_redis`, which has a user with a password."""
    own_redis.ask("ACL", "SETUSER", "app", "on", ">data-s3cret", "~*", "&*", "+@all")
    with watching(own_redis, tmp_path) as server:
        yield server


def options(sentinel: RedisServer, user: str = "app:data-s3cret@") -> RedisOptions:
    return RedisOptions(
        url=SecretStr(f"redis://{user}unused:1/0"),
        timeout_seconds=ANSWER_SECONDS,
        sentinels=(f"127.0.0.1:{sentinel.port}",),
        sentinel_service="main",
    )


async def test_the_store_works_through_sentinel(sentinel: RedisServer) -> None:
    async with RedisConnection(options(sentinel)) as redis, RedisStateStore(redis, CLOCK) as store:
        execution = await store.create(pending(CLOCK))
        assert await store.load(execution.id) == execution
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(store.wait, execution.id, after=0))
                await store.append(claim.lease, [printed(CLOCK, b"a")])


async def test_a_failover_is_followed(own_redis: RedisServer, tmp_path: Path) -> None:
    with (
        running_redis("--replicaof", "127.0.0.1", str(own_redis.port)) as replica,
        anyio.fail_after(_BOUND_SECONDS),
        ExitStack() as stack,
    ):
        while replica.ask("ROLE")[3] != b"connected":
            await anyio.lowlevel.checkpoint()
        sentinel = stack.enter_context(watching(own_redis, tmp_path))
        async with RedisConnection(options(sentinel, user="")) as redis, RedisStateStore(redis, CLOCK) as store:
            execution = await store.create(pending(CLOCK))
            while not (replica.ask("EXISTS", f"execution:{execution.id}") and _fails_over(sentinel)):
                await anyio.lowlevel.checkpoint()
            while replica.ask("ROLE")[0] != b"master":
                await anyio.lowlevel.checkpoint()
            # What the Sentinel itself tells the old master, up to 15 s later; what that takes until then is gone.
            own_redis.ask("REPLICAOF", "127.0.0.1", replica.port)
            own_redis.ask("CLIENT", "KILL", "TYPE", "normal")
            again = None
            while again is None or not replica.ask("EXISTS", f"execution:{again.id}"):
                with suppress(StoreUnavailable):
                    again = await store.create(pending(CLOCK))
            assert await store.load(execution.id) == execution


def _fails_over(sentinel: RedisServer) -> bool:
    """Ask for a failover; False while the Sentinel has not found the replica."""
    try:
        sentinel.ask("SENTINEL", "FAILOVER", "main")
    except ResponseError:
        return False
    return True
