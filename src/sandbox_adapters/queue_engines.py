"""The queue that servers and workers share: which engine keeps it, the way there, and whether it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import anyio

from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.queues.adopting import EngineQueue
from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_adapters.redis_connection import RedisConnection
from sandbox_adapters.runners.probes import Check
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.domain.errors import InfrastructureError

if TYPE_CHECKING:
    from sandbox_adapters.nats_connection import NatsConnection
    from sandbox_adapters.rabbitmq_connection import RabbitConnection

    EngineConnection = RedisConnection | NatsConnection | RabbitConnection

CHECK_SECONDS = 3.0
OLDEST_NATS = (2, 9, 0)
OLDEST_RABBITMQ = (3, 10)

RABBITMQ_BUCKETS = 32
"""Quorum queues that hold what waits in RabbitMQ. The same for every process of a fleet."""


def engine_connection(settings: Settings, state: RedisConnection) -> EngineConnection:
    """Return the way to the queue: the one to the state when it is the same server."""
    if settings.queue_engine == "nats":
        return nats_connection(settings)
    if settings.queue_engine == "rabbitmq":
        return rabbitmq_connection(settings)
    if settings.queue_url is None or settings.queue_url == settings.redis_url:
        return state
    return RedisConnection(replace(state.options, url=settings.queue_url, sentinels=()))


def engine_queue(
    settings: Settings, connection: EngineConnection, state: RedisConnection, queued_per_principal: int
) -> EngineQueue:
    """Return the queue over a connection; `state` is the one to the store."""
    if isinstance(connection, RedisConnection):
        return RedisQueue(
            connection=connection,
            max_depth=settings.max_queued,
            max_per_principal=queued_per_principal,
            visibility_seconds=settings.lease_seconds,
            ttl_seconds=settings.ttl_seconds,
        )
    if settings.queue_engine == "rabbitmq":
        return rabbitmq_queue(settings, cast("RabbitConnection", connection), state, queued_per_principal)
    from sandbox_adapters.queues.jetstream import JetStreamQueue

    return JetStreamQueue(
        connection=cast("NatsConnection", connection),
        max_depth=settings.max_queued,
        max_per_principal=queued_per_principal,
        visibility_seconds=settings.lease_seconds,
    )


def nats_connection(settings: Settings) -> NatsConnection:
    """Return the way to NATS. Imported here: its client is an extra."""
    from sandbox_adapters.nats_connection import NatsConnection

    if settings.queue_url is None:
        raise SettingsError("SANDBOX_QUEUE_URL is not set.")
    return NatsConnection(
        NatsOptions(settings.queue_url, prefix=settings.redis_prefix, timeout_seconds=settings.redis_timeout_seconds)
    )


def rabbitmq_connection(settings: Settings) -> RabbitConnection:
    """Return the way to RabbitMQ. Imported here: its client is an extra."""
    from sandbox_adapters.rabbitmq_connection import RabbitConnection

    if settings.queue_url is None:
        raise SettingsError("SANDBOX_QUEUE_URL is not set.")
    options = RabbitOptions(
        settings.queue_url, prefix=settings.redis_prefix, timeout_seconds=settings.redis_timeout_seconds
    )
    return RabbitConnection(options, buckets=RABBITMQ_BUCKETS)


def rabbitmq_queue(
    settings: Settings, connection: RabbitConnection, state: RedisConnection, queued_per_principal: int
) -> EngineQueue:
    """Return the queue over RabbitMQ, with its index in the Redis of the state."""
    from sandbox_adapters.queues.rabbitmq import RabbitQueue

    return RabbitQueue(
        connection=connection,
        state=state,
        max_depth=settings.max_queued,
        max_per_principal=queued_per_principal,
        ttl_seconds=settings.ttl_seconds,
    )


async def engine_check(settings: Settings) -> Check | None:
    """Ask the engine of SANDBOX_QUEUE_URL, and show neither the URL nor its password; None when it is Redis."""
    if settings.queue_engine == "rabbitmq":
        return await rabbitmq_check(settings)
    if settings.queue_engine != "nats":
        return None
    fix = "Start nats-server with JetStream (-js), or correct SANDBOX_QUEUE_URL."
    try:
        with anyio.fail_after(CHECK_SECONDS):
            async with nats_connection(settings) as nats:
                await nats.request("$JS.API.INFO")
                version = nats.server_version
    except (SettingsError, InfrastructureError, ImportError, ValueError, TimeoutError) as error:
        said = str(error) or f"does not answer within {CHECK_SECONDS:g} s"
        return Check("NATS", False, said, fix)
    found = f"{'.'.join(map(str, version))} answers at {nats.address}, with JetStream"
    if version < OLDEST_NATS:
        return Check("NATS", False, f"{found}; it is too old", "Use nats-server 2.9 or newer.")
    return Check("NATS", True, found)


async def rabbitmq_check(settings: Settings) -> Check:
    """Connect to RabbitMQ as a server would, which declares the queues, and look into one."""
    fix = "Start rabbitmq-server, or correct SANDBOX_QUEUE_URL."
    try:
        with anyio.fail_after(CHECK_SECONDS):
            async with rabbitmq_connection(settings) as rabbitmq:
                await rabbitmq.check_rights()
                found = await rabbitmq.fetch(0)
                if found is not None:
                    await rabbitmq.give_back(found)
                version = await rabbitmq.server_version()
                address = rabbitmq.address
    except (SettingsError, InfrastructureError, ImportError, ValueError, TimeoutError) as error:
        said = str(error) or f"does not answer within {CHECK_SECONDS:g} s"
        return Check("RabbitMQ", False, said, fix)
    told = f"{version} answers at {address}, with quorum queues"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST_RABBITMQ:
        return Check("RabbitMQ", False, f"{told}; it is too old", "Use rabbitmq-server 3.10 or newer.")
    return Check("RabbitMQ", True, told)
