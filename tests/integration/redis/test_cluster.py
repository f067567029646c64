"""On a node of a Redis Cluster everything works with a hash tag, and what does not fit says what to set."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from sandbox_adapters.message_log import MessageLog, StreamName
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import StoreUnavailable
from tests.integration.mcp.harness import call, connected, eventually
from tests.integration.redis.conftest import ANSWER_SECONDS, CLOCK
from tests.integration.workers.harness import fleet
from tests.redis_server import RedisServer, need_redis, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def in_slots(cluster: RedisServer) -> set[int]:
    return {cluster.ask("CLUSTER", "KEYSLOT", key) for key in cluster.ask("KEYS", "*")}


async def test_servers_and_workers_keep_all_they_have_in_one_slot(tmp_path: Path) -> None:
    need_redis()
    with (
        running_cluster() as cluster,
        fleet(cluster, tmp_path, workers=1, SANDBOX_REDIS_HASH_TAG="true", SANDBOX_OLDER_SESSIONS="sticky") as started,
    ):
        first, second = (server.url for server in started.servers)
        async with connected(first) as here, connected(second, "legacy") as there:
            execution_id = (await call(here, "execute_code_async", command="cat", interactive=True))["execution_id"]
            await call(there, "send_stdin", execution_id=execution_id, input_data="one\n", end=True)
            said = await call(there, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
            assert (said["status"], said["stdout"]) == ("completed", "one\n")
        keys = {key.decode() for key in cluster.ask("KEYS", "*")}
        assert f"{{sandbox}}:execution:{execution_id}:output" in keys
        assert in_slots(cluster) == {cluster.ask("CLUSTER", "KEYSLOT", "{sandbox}")}


async def test_streams_of_older_clients_are_kept_there_too() -> None:
    need_redis()
    with running_cluster() as cluster:
        options = RedisOptions(SecretStr(cluster.url), timeout_seconds=ANSWER_SECONDS, prefix="team", hash_tag=True)
        async with RedisConnection(options) as redis, MessageLog(redis, ttl_seconds=60) as log:
            name = StreamName("alice", "a" * 32, "b" * 32)
            async with log.following(name) as following:
                entry = await log.append(name, b"one")
                await following.wait()
            assert await log.read_from(name, entry) == [(entry, b"one")]
        assert in_slots(cluster) == {cluster.ask("CLUSTER", "KEYSLOT", "{team}")}


async def test_a_cluster_that_does_not_fit_says_what_to_set() -> None:
    need_redis()
    with running_cluster() as cluster:
        mine = cluster.ask("CLUSTER", "KEYSLOT", "{sandbox}")
        assert "SANDBOX_REDIS_HASH_TAG" in await complaint(cluster, hash_tag=False)
        cluster.ask("CLUSTER", "DELSLOTS", mine)
        assert "a cluster that is down" in await complaint(cluster, hash_tag=True)
        with running_cluster(mine, mine) as other:
            bus = other.ask("CONFIG", "GET", "cluster-port")[1]
            cluster.ask("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
            its_id = other.ask("CLUSTER", "MYID")
            eventually(lambda: b"%b %b" % (its_id, b"127.0.0.1") in cluster.ask("CLUSTER", "NODES"), "they have met")
            cluster.ask("CLUSTER", "SETSLOT", mine, "NODE", its_id)
            assert "another node: name that one in REDIS_URL" in await complaint(cluster, hash_tag=True)


async def complaint(cluster: RedisServer, *, hash_tag: bool) -> str:
    """Return why `/health` of a server would be 503."""
    options = RedisOptions(SecretStr(cluster.url), timeout_seconds=ANSWER_SECONDS, hash_tag=hash_tag)
    async with RedisConnection(options) as redis, RedisStateStore(redis, CLOCK) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.ping()
    return str(caught.value)
