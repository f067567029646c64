"""A Redis that is restarted, killed, paused, full, read-only, or not there yet: what runs goes on, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.integration.mcp.harness import call, connected, refusal, until
from tests.integration.replicas.harness import Replica, check_log, need, printed, replicas, whole_log
from tests.redis_server import RedisServer, running_redis

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

LINES = 200
SOME_LINES = f"for i in $(seq 1 {LINES}); do echo $i; sleep 0.05; done"
ALL = "".join(f"{number}\n" for number in range(1, LINES + 1))
FAIL_FAST_SECONDS = 30.0
"""Within this a read fails that Redis does not answer: its time limit is 2 s, and the machine may be busy."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """One for all tests here: every fault ends well, or the next test shows it."""
    need("redis-server")
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def two(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with replicas(redis, tmp_path_factory.mktemp("two"), 2) as started:
        yield started


@contextmanager
def stopped(redis: RedisServer) -> Iterator[None]:
    redis.stop()
    yield
    redis.start()


@contextmanager
def killed(redis: RedisServer) -> Iterator[None]:
    redis.kill()
    yield
    redis.start()


@contextmanager
def paused(redis: RedisServer) -> Iterator[None]:
    redis.pause()
    yield
    redis.resume()


@contextmanager
def full(redis: RedisServer) -> Iterator[None]:
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    yield
    redis.ask("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def read_only(redis: RedisServer) -> Iterator[None]:
    redis.ask("CONFIG", "SET", "min-replicas-to-write", "3")
    yield
    redis.ask("CONFIG", "SET", "min-replicas-to-write", "0")


@pytest.mark.parametrize(
    ("fault", "seconds"), [(stopped, 3), (killed, 3), (paused, 3), (paused, 30), (full, 3), (read_only, 3)]
)
async def test_what_runs_goes_on_and_its_output_arrives_whole(
    redis: RedisServer, two: list[Replica], fault: Callable[..., object], seconds: float
) -> None:
    owner, other = two
    async with connected(owner.url) as mine, connected(other.url) as client:
        execution_id = (await call(mine, "execute_code_async", command=SOME_LINES))["execution_id"]
        await call(client, "get_execution_output", execution_id=execution_id, last_event_id="1", wait_seconds=60)
        begun = time.monotonic()
        with fault(redis):  # type: ignore[attr-defined]  # each of the context managers above
            if fault in (stopped, killed, paused):
                with anyio.fail_after(FAIL_FAST_SECONDS):
                    said = await refusal(client, "get_execution_output", execution_id=execution_id)
                assert said["code"] == "store_unavailable"
            await until(lambda: health(other) == (503, "unavailable"), "health tells")
            await anyio.sleep(max(0.0, begun + seconds - time.monotonic()))
        for each in two:
            await until(partial(is_well, each), "health tells that it is over")
        for reader in (client, mine):
            said = await call(reader, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
            assert said["status"] == "completed", said
            events = await whole_log(reader, execution_id)
            check_log(events)
            assert printed(events) == ALL


async def test_a_redis_that_comes_after_the_replicas(own_redis: RedisServer, tmp_path: Path) -> None:
    own_redis.stop()
    with replicas(own_redis, tmp_path, 2) as (one, other):
        assert health(one) == (503, "unavailable")
        async with connected(one.url) as client:
            assert (await refusal(client, "execute_code", command="true"))["code"] == "store_unavailable"
            own_redis.start()
            for each in (one, other):
                await until(partial(is_well, each), "it is seen")
            started = await call(client, "execute_code_async", command="cat", interactive=True)
            async with connected(other.url) as second:
                await call(
                    second,
                    "send_stdin",
                    execution_id=started["execution_id"],
                    input_data="elsewhere\n",
                    end=True,
                )
                said = await call(
                    second, "get_execution_output", execution_id=started["execution_id"], wait=True, wait_seconds=30
                )
                assert said["stdout"] == "elsewhere\n"


@pytest.mark.parametrize("poison", ["not json", '{"v":2}', '{"v":1,"execution":{"id":"x"}}'])
async def test_a_poisoned_value_is_told_and_harms_nothing_else(
    redis: RedisServer, two: list[Replica], poison: str
) -> None:
    async with connected(two[0].url) as mine, connected(two[1].url) as client:
        good = (await call(mine, "execute_code", command="echo good"))["execution_id"]
        bad = (await call(mine, "execute_code", command="echo bad"))["execution_id"]
        redis.ask("SET", f"execution:{bad}", poison, "KEEPTTL")
        # Asked of the other replica: the one that ran it answers for a moment from what it wrote itself.
        assert (await refusal(client, "get_execution_output", execution_id=bad))["code"] == "stored_data_corrupt"
        for reader in (mine, client):
            check_log(await whole_log(reader, good))
        assert (await call(client, "execute_code", command="echo on"))["stdout"] == "on\n"


def is_well(replica: Replica) -> bool:
    return health(replica) == (200, "ok")


def health(replica: Replica) -> tuple[int, str]:
    try:
        answer = replica.health()
    except httpx2.HTTPError:
        return 0, "gone"
    return answer.status_code, str(answer.json()["status"])
