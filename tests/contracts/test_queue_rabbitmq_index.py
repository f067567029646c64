"""RabbitIndex on a real Redis: what it notes of buckets in which nothing was found."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from sandbox_adapters.queues.rabbitmq_index import RabbitIndex
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_core.testing.queue_harness import item
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MISSED = "queue:rabbitmq:missed"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_look_into_what_others_have_emptied_leaves_no_mark_that_counts_hours_later(
    redis_server: RedisServer,
) -> None:
    async with RedisConnection(RedisOptions(SecretStr(redis_server.url), timeout_seconds=10)) as connection:
        index = RabbitIndex(connection, buckets=4)
        taken, waits = item(), item()
        placed = await index.put(taken, max_depth=10, max_per_principal=10)
        assert placed.bucket is not None
        await index.forget(taken.execution_id)
        assert await index.missed(placed.bucket) == 0
        assert redis_server.ask("HLEN", MISSED) == 0

        placed = await index.put(waits, max_depth=10, max_per_principal=10)
        assert placed.bucket is not None
        assert await index.missed(placed.bucket) == 0
        assert redis_server.ask("HLEN", MISSED) == 1
        assert await index.is_here(waits.execution_id, placed.bucket)
        assert redis_server.ask("HLEN", MISSED) == 0
