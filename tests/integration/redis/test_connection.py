"""RedisConnection: what it reaches, what it says when it cannot, and what it never shows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.redis_connection import LuaScript, RedisConnection, RedisOptions, key_part
from sandbox_core.domain.errors import StoredDataCorrupt, StoreUnavailable
from tests.integration.redis.conftest import ANSWER_SECONDS
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio
_BOUND_SECONDS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def options(url: str, *, timeout_seconds: float = ANSWER_SECONDS, **others: object) -> RedisOptions:
    return RedisOptions(url=SecretStr(url), timeout_seconds=timeout_seconds, **others)  # type: ignore[arg-type]  # of the test


async def test_a_command_and_a_script_are_answered(redis_server: RedisServer) -> None:
    script = LuaScript("return {ARGV[1], redis.call('GET', KEYS[1])}")
    async with RedisConnection(options(redis_server.url)) as redis:
        await redis.command("SET", "a", b"\xff")
        for _ in range(2):
            assert await redis.run(script, ["a"], ["x"]) == [b"x", b"\xff"]
        redis_server.ask("SCRIPT", "FLUSH")
        assert await redis.run(script, ["a"], ["x"]) == [b"x", b"\xff"]


async def test_many_commands_share_few_connections(redis_server: RedisServer) -> None:
    async with RedisConnection(options(redis_server.url, max_connections=3)) as redis:
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(redis.command, "SET", f"k{number}", number)
        clients = redis_server.ask("CLIENT", "LIST").decode().splitlines()
        assert len(clients) <= 3 + 1
    assert redis_server.ask("DBSIZE") == 50


async def test_a_password_opens_and_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), running_redis("--user", "app", "on", ">s3cret", "~*", "&*", "+@all") as server:
        good = options(f"redis://app:s3cret@127.0.0.1:{server.port}/1")
        async with RedisConnection(good) as redis:
            await redis.command("SET", "a", 1)
            assert "s3cret" not in f"{redis!r} {redis.options!r} {redis.address}"
        assert server.ask("DBSIZE") == 0
        with pytest.raises(StoreUnavailable, match="refuses the user or the password") as refused:
            await RedisConnection(options(f"redis://app:s3cret-wrong@127.0.0.1:{server.port}/0")).__aenter__()
        server.stop()
        async with RedisConnection(good) as redis:
            with pytest.raises(StoreUnavailable, match="cannot be reached") as away:
                await redis.command("PING")
    shown = "".join(f"{error.value} {error.value.__cause__!r}" for error in (refused, away))
    assert "s3cret" not in shown + caplog.text
    assert "Redis connected - distributed mode enabled" in caplog.text
    assert "Redis is not there yet" in caplog.text


async def test_a_dead_connection_is_replaced_without_an_error(own_redis: RedisServer) -> None:
    async with RedisConnection(options(own_redis.url)) as redis:
        await redis.command("SET", "a", 1)
        own_redis.kill()
        own_redis.start()
        assert await redis.command("GET", "a") == b"1"


async def test_a_server_that_hangs_is_given_up_in_bounded_time(own_redis: RedisServer) -> None:
    async with RedisConnection(options(own_redis.url, timeout_seconds=0.5)) as redis:
        own_redis.pause()
        with anyio.fail_after(_BOUND_SECONDS), pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
            await redis.command("PING")
        own_redis.resume()
        with anyio.fail_after(_BOUND_SECONDS):
            await _answers(redis)


async def _answers(redis: RedisConnection) -> None:
    """Return at the first answer: half a second may be too short for it."""
    while True:
        with suppress(StoreUnavailable):
            return await _ping(redis)


async def _ping(redis: RedisConnection) -> None:
    assert await redis.command("PING") is not None


@pytest.mark.parametrize(
    ("set_up", "says"),
    [
        (lambda server: server.ask("CONFIG", "SET", "maxmemory", 1), "out of memory"),
        (lambda server: server.ask("REPLICAOF", "127.0.0.1", 1), "read-only"),
    ],
    ids=["out-of-memory", "read-only"],
)
async def test_a_server_that_takes_no_writes_says_why(
    own_redis: RedisServer, set_up: Callable[[RedisServer], object], says: str
) -> None:
    async with RedisConnection(options(own_redis.url)) as redis:
        set_up(own_redis)
        for call in (redis.command("SET", "a", 1), redis.run(LuaScript("redis.call('SET', 'a', '1')"), [], [])):
            with pytest.raises(StoreUnavailable, match=says):
                await call


async def test_a_key_of_another_type_is_corrupt_data(redis_server: RedisServer) -> None:
    redis_server.ask("SET", "a", "text")
    async with RedisConnection(options(redis_server.url)) as redis:
        for call in (redis.command("LLEN", "a"), redis.run(LuaScript("return redis.call('LLEN', KEYS[1])"), ["a"], [])):
            with pytest.raises(StoredDataCorrupt, match="another type"):
                await call


async def test_unix_sockets_are_reached(own_redis: RedisServer) -> None:
    with running_redis("--unixsocket", str(own_redis.directory / "s")):
        async with RedisConnection(options(f"unix://{own_redis.directory}/s?db=1")) as redis:
            assert await redis.command("SELECT", 0) is not None


def test_names_are_apart_whatever_they_hold() -> None:
    assert options("redis://h").namespace == ""
    assert options("redis://h", prefix="team").namespace == "team:"
    assert options("redis://h", prefix="team", hash_tag=True).namespace == "{team}:"
    assert options("redis://h", hash_tag=True).namespace == "{sandbox}:"
    texts = ["a", "a:b", "a%3Ab", "{a}", "a*", "a|b", "ä", "a@b.c_d-e"]
    parts = [key_part(text) for text in texts]
    assert len(set(parts)) == len(texts)
    assert not any(character in part for part in parts for character in ":{}*|")
    assert parts[-1] == "a@b.c_d-e"


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_another_event_loop_is_refused(anyio_backend: str) -> None:
    with pytest.raises(RuntimeError, match="asyncio only"):
        await RedisConnection(options("redis://127.0.0.1:1")).__aenter__()
