"""A process that takes one item, claims it when it is told to, says so, and then does nothing until it is killed.

python -m tests.contracts.rabbitmq_taker take|claim PREFIX     # the URLs are in AMQP_URL and REDIS_URL
"""

from __future__ import annotations

import os
import sys

import anyio
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.queues.rabbitmq import RabbitQueue
from sandbox_adapters.rabbitmq_connection import RabbitConnection
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.testing.queue_harness import everyone
from sandbox_core.testing.samples import NODE
from tests.contracts.rabbitmq_harness import BUCKETS


async def main(until: str, prefix: str) -> None:
    """See above."""
    rabbit = RabbitOptions(SecretStr(os.environ["AMQP_URL"]), prefix=prefix, timeout_seconds=10)
    redis = RedisOptions(SecretStr(os.environ["REDIS_URL"]), prefix=prefix, timeout_seconds=10)
    async with (
        RedisConnection(redis) as state,
        RedisStateStore(state, SystemClock()) as store,
        RabbitConnection(rabbit, buckets=BUCKETS) as connection,
        RabbitQueue(connection=connection, state=state) as queue,
    ):
        delivery = await queue.take(everyone)
        if until == "claim":
            await store.claim(delivery.item.execution_id, NODE, lease_seconds=60)
        print(delivery.item.execution_id, flush=True)  # noqa: T201  # the test waits for it
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
