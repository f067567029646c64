"""SharedQueue: a queue in each replica, and what waits in one that died or ended is taken over by another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from sandbox_adapters.background import Background, rounds
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.redis_connection import LuaScript, RedisConnection
from sandbox_adapters.redis_time import REDIS_TIME
from sandbox_core.domain.errors import ExecutionNotFound, InfrastructureError, ServerFull, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import Admit, Delivery, QueueItem
from sandbox_core.ports.store import StateStore

AT_ONCE: Final = 100
"""Executions that are taken over in one round at most."""

_log = logging.getLogger("sandbox_adapters.queue")

_VOUCH: Final = LuaScript(
    REDIS_TIME
    + """
-- KEYS: waiting. ARGV: for how many ms, ids. Answers with those that wait no more: claimed, cancelled or expired.
local at, missing = now() + ARGV[1], {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], at, ARGV[i])
  else
    missing[#missing + 1] = ARGV[i]
  end
end
return missing
"""
)

ADOPT: Final = LuaScript(
    REDIS_TIME
    + """
-- KEYS: waiting. ARGV: for how many ms, most. One caller gets each.
if #redis.call('ZRANGE', KEYS[1], 0, 0) == 0 then return {} end
local at = now()
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do redis.call('ZADD', KEYS[1], 'XX', at + ARGV[1], id) end
return ids
"""
)


class SharedQueue(Background):
    """ExecutionQueue of one replica among several, over a LocalQueue. Satisfies `ExecutionQueue`; asyncio only.

    RedisStateStore notes each pending execution with the time until which somebody vouches for it. While the context
    lasts this queue vouches for what waits here, and takes over what nobody vouches for: nothing of it ever ran, and
    the claim starts it at most once, also when two replicas hold it for a while. Putting and taking tell Redis nothing.

    Args:
        local: where items wait.
        store: where adopted executions are read.
        connection: entered before this, and left after it.
        clock: for the rounds.
        lease_seconds: how long a replica may be silent; there is a round every third of it.
        offers: labels of the takers here: what needs others is left to a replica that has them. None: take all.
    """

    def __init__(
        self,
        *,
        local: LocalQueue,
        store: StateStore,
        connection: RedisConnection,
        clock: Clock,
        lease_seconds: float,
        offers: frozenset[str] | None = None,
    ) -> None:
        super().__init__(self._work)
        self._local = local
        self._store = store
        self._connection = connection
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._waiting_key = f"{connection.namespace}waiting"
        self._closed = False
        self._offers = offers
        self.remove = local.remove
        self.recheck = local.recheck
        self.depth = local.depth
        self.stats = local.stats

    async def put(self, item: QueueItem) -> None:
        """Add an item, or offer it to the others when it needs labels that are not here. Raises as LocalQueue does."""
        if self._is_for_others(item):
            await self._offer([item.execution_id])
        else:
            await self._local.put(item)

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts."""
        return await self._local.take(admit, offers)

    async def done(self, delivery: Delivery) -> None:
        """Forget the item."""
        await self._local.done(delivery)

    async def give_back(self, delivery: Delivery) -> None:
        """Put the item back, in front of everything; offer it to the others when this queue is closed."""
        await self._local.give_back(delivery)
        if self._closed:
            await self._offer([delivery.item.execution_id])

    async def close(self) -> Sequence[QueueItem]:
        """Offer what waits here to the other replicas, and return nothing: it is theirs now, or the next one's."""
        self._closed = True
        items = await self._local.close()
        await self._offer([item.execution_id for item in items])
        return ()

    async def _work(self) -> None:
        await rounds(
            self._round,
            clock=self._clock,
            every_seconds=self._lease_seconds / 3,
            log=_log,
            complaint="what waits elsewhere could not be looked at",
        )

    async def _round(self) -> None:
        life = round(self._lease_seconds * 1000)
        if waiting := self._local.waiting:
            for raw in await self._connection.run(_VOUCH, [self._waiting_key], [life, *waiting]):
                await self._forget(ExecutionId(raw.decode(errors="replace")))
        most = min(self._local.room, AT_ONCE)
        if self._closed or most < 1:
            return
        for raw in await self._connection.run(ADOPT, [self._waiting_key], [life, most]):
            await self._adopt(ExecutionId(raw.decode(errors="replace")))

    async def _forget(self, execution_id: ExecutionId) -> None:
        """Give the room back of what was cancelled through another replica."""
        if await pending_item(self._store, execution_id) is None:
            await self._local.remove(execution_id)

    async def _adopt(self, execution_id: ExecutionId) -> None:
        item = await pending_item(self._store, execution_id)
        if item is None:
            await self._connection.command("ZREM", self._waiting_key, execution_id)
            return
        if self._is_for_others(item):
            await self._offer([execution_id])
            return
        try:
            await self._local.put(item)
        except ServerFull:
            await self._offer([execution_id])
        else:
            _log.info("%s waits here now: nobody else kept it", execution_id)

    def _is_for_others(self, item: QueueItem) -> bool:
        return bool(item.labels) and self._offers is not None and not self._offers.issuperset(item.labels)

    async def _offer(self, ids: Sequence[ExecutionId]) -> None:
        if not ids:
            return
        try:
            await self._connection.run(_VOUCH, [self._waiting_key], [0, *ids])
        except InfrastructureError as error:
            _log.warning("what waited here is taken over only after a lease: %s", error)


async def pending_item(store: StateStore, execution_id: ExecutionId) -> QueueItem | None:
    """Return what would be queued of a pending execution; None when it waits no more."""
    try:
        execution = await store.load(execution_id)
    except (ExecutionNotFound, StoredDataCorrupt) as error:
        _log.warning("%s waits no more: %s", execution_id, error)
        return None
    if execution.status is not ExecutionStatus.PENDING:
        return None
    return QueueItem(
        execution_id=execution_id,
        principal=execution.principal,
        session_id=execution.session_id,
        queued_at=execution.queued_at,
        labels=execution.labels,
    )
