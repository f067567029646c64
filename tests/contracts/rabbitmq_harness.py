"""Opens RabbitQueues as several processes would, on one real RabbitMQ and one real Redis."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Protocol
from uuid import uuid4

import anyio
from pydantic import SecretStr

from sandbox_adapters.queues.rabbitmq import RabbitQueue
from sandbox_adapters.rabbitmq_connection import RabbitConnection
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_core.ports.queue import Delivery
from sandbox_core.testing.queue_harness import everyone
from tests.rabbitmq_server import RabbitServer
from tests.redis_server import RedisServer

BOUND_SECONDS = 60
BUCKETS = 8


class Join(Protocol):
    """Opens the queue as one more process would; `prefix` is what its names begin with."""

    prefix: str

    async def __call__(
        self, *, max_depth: int = 100, max_per_principal: int | None = None, stack: AsyncExitStack | None = None
    ) -> RabbitQueue:
        """Return the queue, entered in `stack`, or in that of the fixture."""
        ...


async def opened(
    server: RabbitServer, redis: RedisServer, stack: AsyncExitStack, prefix: str, **options: int | None
) -> RabbitQueue:
    """Return a queue with connections of its own."""
    state = await stack.enter_async_context(
        RedisConnection(RedisOptions(SecretStr(redis.url), prefix=prefix, timeout_seconds=10))
    )
    rabbit = RabbitOptions(SecretStr(server.url), prefix=prefix, timeout_seconds=10)
    connection = await stack.enter_async_context(RabbitConnection(rabbit, buckets=BUCKETS))
    given = {name: value for name, value in options.items() if value is not None}
    return await stack.enter_async_context(RabbitQueue(connection=connection, state=state, **given))


def joining(server: RabbitServer, redis: RedisServer, outer: AsyncExitStack) -> Join:
    """Return what opens queues of one fleet."""

    class _Join:
        prefix = uuid4().hex[:8]

        async def __call__(
            self, *, max_depth: int = 100, max_per_principal: int | None = None, stack: AsyncExitStack | None = None
        ) -> RabbitQueue:
            return await opened(
                server, redis, stack or outer, self.prefix, max_depth=max_depth, max_per_principal=max_per_principal
            )

    return _Join()


async def take(queue: RabbitQueue, *offers: str) -> Delivery:
    """Take within a bound."""
    with anyio.fail_after(BOUND_SECONDS):
        return await queue.take(everyone, frozenset(offers))
