"""AdoptingQueue: a queue that processes share, and what was stored by a server that died before it queued it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Protocol, Self

from sandbox_adapters.background import Background, rounds
from sandbox_adapters.queues.shared import ADOPT, AT_ONCE, pending_item
from sandbox_adapters.redis_connection import RedisConnection
from sandbox_core.domain.errors import InfrastructureError, ServerDraining, ServerFull
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import Delivery, ExecutionQueue
from sandbox_core.ports.store import StateStore

_log = logging.getLogger("sandbox_adapters.queue")

LOOKED_AT_MS: Final = 60_000
"""Each pending execution is looked at so often, by one of all processes, while it waits in the queue."""


class EngineQueue(ExecutionQueue, AbstractAsyncContextManager[object], Protocol):
    """An ExecutionQueue of an engine, in its context, that tells what of a list it has."""

    async def waiting(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of these ids that are in the queue."""
        ...


class AdoptingQueue(Background):
    """ExecutionQueue. Satisfies `ExecutionQueue` while its context lasts; asyncio only. All else as `queue`.

    RedisStateStore notes each pending execution with a time until which nobody needs to care for it. Once in a
    lease this asks for those whose time is over, and queues what the queue does not have: it never started anywhere,
    and the claim starts it at most once. Without any, that is one script each time.

    `done` returns at once and tells the engine meanwhile: what was claimed need not wait for that. An acknowledgement
    that is lost, with this process or at its end, only lets the item be handed out once more, in vain.

    Args:
        queue: entered and left with this.
        store: where pending executions are read.
        state: the connection of the store, entered before this and left after it.
        clock: for the rounds.
        lease_seconds: see above.
    """

    def __init__(
        self, *, queue: EngineQueue, store: StateStore, state: RedisConnection, clock: Clock, lease_seconds: float
    ) -> None:
        super().__init__(self._work)
        self._queue = queue
        self._store = store
        self._state = state
        self._clock = clock
        self._every = lease_seconds
        self.put = queue.put
        self.take = queue.take
        self.give_back = queue.give_back
        self.remove = queue.remove
        self.recheck = queue.recheck
        self.close = queue.close
        self.depth = queue.depth
        self.stats = queue.stats

    async def __aenter__(self) -> Self:
        await self._queue.__aenter__()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            await self._queue.__aexit__(kind, error, trace)

    async def done(self, delivery: Delivery) -> None:
        """Forget the item, soon."""
        if self._tasks is None:
            await self._queue.done(delivery)
        else:
            self._tasks.start_soon(self._acknowledge, delivery)

    async def _acknowledge(self, delivery: Delivery) -> None:
        try:
            await self._queue.done(delivery)
        except Exception:  # noqa: BLE001  # the outermost handler of one acknowledgement: the others go on
            _log.exception("%s will be handed out again, in vain", delivery.item.execution_id)

    async def _work(self) -> None:
        await rounds(
            self._adopt,
            clock=self._clock,
            every_seconds=self._every,
            log=_log,
            complaint="what no server has queued could not be queued",
            tolerated=(InfrastructureError, ServerFull, ServerDraining),
        )

    async def _adopt(self) -> None:
        key = f"{self._state.namespace}waiting"
        found = await self._state.run(ADOPT, [key], [LOOKED_AT_MS, AT_ONCE])
        known = await self._queue.waiting(found) if found else set()
        for raw in found:
            if raw in known:
                continue
            execution_id = ExecutionId(raw.decode(errors="replace"))
            item = await pending_item(self._store, execution_id)
            if item is None:
                await self._state.command("ZREM", key, execution_id)
                continue
            await self._queue.put(item)
            _log.info("%s is queued now: its server had not come to it", execution_id)
