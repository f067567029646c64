"""What RabbitConnection asks of aio-pika beside its queues: why nothing is answered, and an end within bounds."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio
from aio_pika.abc import AbstractConnection

NO_PERMISSION: Final = (
    r"does not give its user all permissions: configure and read ^sandbox\. and write ^(sandbox\.|amq\.default$)"
)

_CLOSING_SECONDS: Final = 2.0
_TOLD_SECONDS: Final = 0.05


async def is_blocked(connection: AbstractConnection) -> bool:
    """Return whether RabbitMQ has said that it takes nothing from this connection (its AMQP extension for that)."""
    transport = connection.transport
    if transport is None or connection.is_closed:
        return False
    with anyio.CancelScope(shield=True), anyio.move_on_after(_TOLD_SECONDS):
        await transport.connection.ready()
        return False
    return True


async def close(connection: AbstractConnection) -> None:
    """Close a connection, in whatever state it is."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING_SECONDS), suppress(Exception):
        await connection.close()
