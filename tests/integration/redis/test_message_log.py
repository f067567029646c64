"""The log of older clients' streams: who follows one hears of it from every process, and asks for nothing meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.message_log import MessageLog, StreamName
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from tests.integration.redis.conftest import ANSWER_SECONDS
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EVENT_SECONDS = 60
NAME = StreamName("alice", "a" * 32, "b" * 32)


@asynccontextmanager
async def opened(own_redis: RedisServer) -> AsyncIterator[tuple[MessageLog, RedisConnection]]:
    options = RedisOptions(url=SecretStr(own_redis.url), timeout_seconds=ANSWER_SECONDS, prefix="p")
    async with RedisConnection(options) as connection, MessageLog(connection, ttl_seconds=60) as log:
        yield log, connection


async def test_a_follower_is_woken_by_another_process_and_asks_for_nothing_meanwhile(own_redis: RedisServer) -> None:
    async with opened(own_redis) as (here, connection), opened(own_redis) as (there, _):
        first = await there.append(NAME, b"one")
        with anyio.fail_after(EVENT_SECONDS):
            async with here.following(NAME) as following:
                asked = connection.asked
                async with anyio.create_task_group() as tasks:

                    async def wait() -> None:
                        await following.wait()
                        tasks.cancel_scope.cancel()

                    following.mark()
                    tasks.start_soon(wait)
                    await there.append(NAME, b"two")
                    await anyio.sleep_forever()
                assert connection.asked == asked
                found = await here.read_from(NAME, first)
        assert [message for _, message in found] == [b"one", b"two"]


async def test_a_follower_looks_again_when_redis_came_back(own_redis: RedisServer) -> None:
    async with opened(own_redis) as (here, _):
        await here.append(NAME, b"one")
        with anyio.fail_after(EVENT_SECONDS):
            async with here.following(NAME) as following:
                following.mark()
                own_redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
                await following.wait()
