"""OwnBack and Heartbeat: what this process tells about its back, and how often."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import anyio

from sandbox_adapters.fleet.record import BackRecord
from sandbox_core.application.remote import Back
from sandbox_core.domain.errors import InfrastructureError
from sandbox_core.domain.ids import NodeId
from sandbox_core.ports.clock import Clock

if TYPE_CHECKING:
    from sandbox_adapters.fleet.redis import RedisFleet

EVERY_SECONDS: Final = 15.0
"""Three of these fit into the life of what was told."""

_RETRY_SECONDS: Final = 1.0
_GOODBYE_SECONDS: Final = 2.0

_log = logging.getLogger("sandbox_adapters.fleet")


class OwnBack:
    """The back of this process, as others see it.

    Args:
        back: tells how much it runs, and how much at most.
        is_draining: whether it takes nothing new any more.
        host: this machine's name.
        queue: the engine of the queue that it takes from.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        back: Back,
        is_draining: Callable[[], bool],
        clock: Clock,
        host: str,
        labels: frozenset[str],
        queue: str,
    ) -> None:
        self._node = node
        self._back = back
        self._is_draining = is_draining
        self._host = host
        self._labels = tuple(sorted(labels))
        self._queue = queue
        self._started_at = clock.now()
        self._version = version("sandbox-mcp")
        self._has_changed = anyio.Event()

    def changed(self) -> None:
        """Something changed that others must know at once."""
        self._has_changed.set()

    async def wait_for_change(self) -> None:
        """Return when `changed` was called, at once when it was since the last return."""
        await self._has_changed.wait()
        self._has_changed = anyio.Event()

    @property
    def record(self) -> BackRecord:
        """How it is now."""
        return BackRecord(
            node=self._node,
            host=self._host,
            started_at=self._started_at,
            labels=self._labels,
            concurrency=self._back.capacity,
            busy=self._back.running,
            queue=self._queue,
            version=self._version,
            draining=self._is_draining(),
        )


class Heartbeat:
    """Tells the fleet of this process's back every 15 s, at once when it changed, and every second while it cannot."""

    def __init__(self, fleet: RedisFleet, own: OwnBack, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._fleet = fleet
        self._own = own
        self._every = every_seconds
        self._failed = False

    async def beat(self) -> None:
        """Tell it once. A store that is away is logged, the first time."""
        try:
            await self._fleet.announce(self._own.record)
        except InfrastructureError as error:
            if not self._failed:
                _log.warning("Nobody can be told of this worker: %s", error)
            self._failed = True
        else:
            self._failed = False

    async def run(self) -> None:
        """Go on telling until cancelled; the first beat is the caller's."""
        while True:
            with anyio.move_on_after(_RETRY_SECONDS if self._failed else self._every):
                await self._own.wait_for_change()
            await self.beat()

    async def end(self) -> None:
        """Say that this back is gone. Bounded, since a store may be away."""
        with anyio.move_on_after(_GOODBYE_SECONDS, shield=True), suppress(InfrastructureError):
            await self._fleet.withdraw(self._own.record)
