"""RedisQueue: pending executions between fronts and backs in many processes. See redis_prelude for what is kept where.

Why lists and scripts and not a stream with a consumer group: docs/adr/0011-queue-of-lists-in-redis.md.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.lowlevel

from sandbox_adapters.background import Background
from sandbox_adapters.queues import redis_scripts as scripts
from sandbox_adapters.queues.redis_items import decode_item, encode_item
from sandbox_adapters.queues.redis_wakes import WakeListener
from sandbox_adapters.redis_connection import LuaScript, RedisConnection, key_part
from sandbox_core.domain.errors import InfrastructureError, ServerDraining, ServerFull, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.queue import Admit, Delivery, QueueItem, QueueStats

_log = logging.getLogger("sandbox_adapters.queue")

LOOK_SECONDS: Final = 5.0
"""A taker that nobody wakes looks so often, for what a dead taker left and for a token that died with one."""

LIFE_SECONDS: Final = 7 * 86_400
"""How long keys live after their last use, beyond the time to live of a pending execution."""

ACKNOWLEDGE_SECONDS: Final = 0.25
"""How long Redis may not know what is done, when no look tells it before."""

MAX_DONE: Final = 1000
"""What is done and not told yet, at most."""

_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS, _UNKNOWN_RETRY_SECONDS = 1, 30, 5
_FULL, _FULL_FOR_ONE, _TOO_MANY_SETS = 1, 2, 3


class RedisQueue(Background):
    """ExecutionQueue over Redis. Satisfies `ExecutionQueue` while its context lasts; asyncio only.

    An item that was handed over is handed out again `visibility_seconds` after its taker's process was last heard of.
    The counts are exact: every change is one script. A removal while a taker asks about the item takes effect, and
    answers False, since that taker may be handed it all the same. `close` returns nothing: others may take what waits.

    What `admit` refused here is asked about again after `recheck`, `put` or `done` in this process; every process
    asks its own admission, so call `recheck` when a place was released anywhere.

    Args:
        connection: entered before this and left after it.
        max_depth: how many items may wait in all; of the process that puts.
        max_per_principal: how many items of one principal may wait; None is `max_depth`.
        visibility_seconds: see above; also how long a question to `admit` may take.
        ttl_seconds: how long a pending execution may live without an access.
    """

    def __init__(
        self,
        *,
        connection: RedisConnection,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        visibility_seconds: float = 9.0,
        ttl_seconds: float = 3600.0,
    ) -> None:
        super().__init__(self._renew, self._acknowledge)
        self._connection = connection
        self._max_depth = max_depth
        self._max_per_principal = max_depth if max_per_principal is None else max_per_principal
        self._visibility = visibility_seconds
        self._visibility_ms = max(1, round(visibility_seconds * 1000))
        self._begin = (connection.namespace, round((ttl_seconds + LIFE_SECONDS) * 1000))
        self._closed = False
        # As in LocalQueue: a refusal counts for the round in which its question began.
        self._round = 0
        self._refused: set[str] = set()
        self._asking = 0
        self._changed = anyio.Event()
        self._listeners: dict[str, WakeListener] = {}
        self._look_in = LOOK_SECONDS
        self._seen_empty = False
        self._held: set[str] = set()
        self._holding = anyio.Event()
        self._done: dict[str, str] = {}
        self._is_done = anyio.Event()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            with anyio.CancelScope(shield=True), suppress(InfrastructureError):
                await self._tell_done()

    async def put(self, item: QueueItem) -> None:
        """Add an item; again, while it waits, is no error. Raises ServerFull, StoreUnavailable, ServerDraining."""
        if self._closed:
            raise ServerDraining
        principal = key_part(item.principal)
        refused, count, mean_ms = await self._run(
            scripts.PUT, item.execution_id, encode_item(item), principal, self._max_depth, self._max_per_principal
        )
        if refused == _FULL:
            raise ServerFull(f"{count} executions are waiting already", _retry_after(mean_ms))
        if refused == _FULL_FOR_ONE:
            raise ServerFull(f"{count} of your executions are waiting already", _retry_after(mean_ms))
        if refused == _TOO_MANY_SETS:
            raise ServerFull(f"executions with {count} different sets of labels are waiting", _retry_after(mean_ms))
        self._ask_again()

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts. An error of `admit` passes, and the item keeps waiting."""
        offered = ",".join(sorted(offers))
        listener = self._listener(offered)
        asked_about = refused = ""
        try:
            # Whatever comes after an empty queue brings a token. Takers with labels look, which makes them known. Who
            # was woken looks: the token is used up, whatever another taker has seen meanwhile.
            if self._seen_empty and not offered:
                self._seen_empty = False
                await listener.wait_for(self._changed)
            while True:
                changed, round_asked = self._changed, self._round
                asked_about = secrets.token_hex(8)
                choice = await self._choose(asked_about, offered, refused)
                refused = ""
                if choice is None:
                    asked_about = ""
                    await listener.wait_for(changed)
                    continue
                item, lane, is_last = choice
                self._asking += 1
                try:
                    admitted = await admit(item)
                finally:
                    self._asking -= 1
                if admitted:
                    # No await since the answer: a cancellation finds the item either waiting or delivered.
                    self._seen_empty = is_last and round_asked == self._round
                    self._held.add(asked_about)
                    self._holding.set()
                    return Delivery(item, asked_about)
                if round_asked == self._round:
                    self._refused.add(lane)
                asked_about, refused = "", asked_about
                self._signal()
        except BaseException:
            await self._put_back(*filter(None, (asked_about, refused)))
            raise

    async def done(self, delivery: Delivery) -> None:
        """Forget the item, soon: Redis is told with the next look, or after ACKNOWLEDGE_SECONDS.

        When this process dies before, the item is handed out once more, and its claim is refused.
        """
        self._held.discard(delivery.receipt)
        if len(self._done) >= MAX_DONE:
            _log.warning("%s will be handed out again, in vain: Redis is away", delivery.item.execution_id)
        else:
            self._done[delivery.receipt] = delivery.item.execution_id
            self._is_done.set()
        self._ask_again()

    async def give_back(self, delivery: Delivery) -> None:
        """Put the item back, in front of everything. No error, and no effect, after `done`."""
        if delivery.receipt not in self._done:
            self._held.discard(delivery.receipt)
            await self._run(scripts.GIVE_BACK, scripts.IN_FRONT, delivery.receipt)
        self._ask_again()

    async def remove(self, execution_id: ExecutionId) -> bool:
        """Drop a waiting item."""
        removed = await self._run(scripts.REMOVE, execution_id)
        self._ask_again()
        return bool(removed)

    async def recheck(self) -> None:
        """Ask `admit` again about what was refused here. No word to Redis when nothing was."""
        self._seen_empty = False  # what another process refused, and has no room for now, woke nobody
        self._ask_again()

    async def close(self) -> Sequence[QueueItem]:
        """Take nothing into the queue any more; what waits stays for others."""
        self._closed = True
        return []

    async def depth(self) -> int:
        """Return how many items wait, over all processes. Raises StoreUnavailable also when Redis takes no writes."""
        return int(await self._run(scripts.DEPTH))

    async def stats(self) -> QueueStats:
        """Return how many items wait, and since when, in one script."""
        depth, oldest = await self._run(scripts.STATS)
        return QueueStats(int(depth), datetime.fromisoformat(oldest.decode()) if oldest else None)

    async def waiting(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of these ids that are here, waiting or taken."""
        return set(await self._run(scripts.WAITING, *ids))

    async def _choose(self, receipt: str, offered: str, refused: str) -> tuple[QueueItem, str, bool] | None:
        """Have what was refused put back and the next item handed over: it, its lane, and whether nothing waits now.

        Whole even when cancelled: `take` puts back.
        """
        while True:
            # Said again is no error, and what is noted meanwhile is for the next time.
            done = self._done.copy()
            with anyio.CancelScope(shield=True):
                answer = await self._run(
                    scripts.HAND_OVER,
                    receipt,
                    self._visibility_ms,
                    offered,
                    refused,
                    len(self._refused),
                    *self._refused,
                    *chain.from_iterable(done.items()),
                )
            self._forget_done(done)
            await anyio.lowlevel.checkpoint_if_cancelled()
            if not answer[0]:
                self._look_soon(int(answer[1]))
                return None
            _, raw_id, raw_lane, raw_item, rest, back_in_ms = answer
            self._look_soon(back_in_ms)
            try:
                item = decode_item(raw_item, raw_id, raw_lane)
            except StoredDataCorrupt as error:
                _log.error("dropped from the queue: %s", error)
                await self._run(scripts.DONE, receipt, raw_id)
            else:
                return item, raw_lane.decode(), rest == 0

    def _look_soon(self, back_in_ms: int) -> None:
        """Look again when what was handed over comes back, in so many ms (-1: nothing was)."""
        self._look_in = LOOK_SECONDS if back_in_ms < 0 else min(LOOK_SECONDS, max(0.05, back_in_ms / 1000))

    async def _put_back(self, *receipts: str) -> None:
        self._signal()
        if receipts:
            with anyio.CancelScope(shield=True), suppress(InfrastructureError):
                await self._run(scripts.GIVE_BACK, scripts.IN_TURN, *receipts)

    async def _acknowledge(self) -> None:
        """Tell Redis what is done and was not told with a look."""
        while True:
            await self._is_done.wait()
            await anyio.sleep(ACKNOWLEDGE_SECONDS)
            self._is_done = anyio.Event()
            try:
                await self._tell_done()
            except InfrastructureError as error:
                self._is_done.set()
                _log.debug("what is done is told later: %s", error)

    async def _tell_done(self) -> None:
        if done := self._done.copy():
            await self._run(scripts.DONE, *chain.from_iterable(done.items()))
            self._forget_done(done)

    def _forget_done(self, told: Iterable[str]) -> None:
        for receipt in told:
            self._done.pop(receipt, None)

    def _listener(self, offers: str) -> WakeListener:
        """Return who listens for takers with these offers, a kind of its own: its tokens are for nobody else."""
        listener = self._listeners.get(offers)
        if listener is None:
            listener = WakeListener(
                self._connection,
                offers=offers,
                look_in=lambda: self._look_in,
                wake=self._signal,
                pass_on=lambda token: self._run(scripts.PASS_ON, token),
            )
            self._listeners[offers] = listener
            if self._tasks is not None:
                self._tasks.start_soon(listener.run)
        return listener

    async def _renew(self) -> None:
        """Hold what was handed over and neither done nor given back, for as long as this process lives."""
        while True:
            await self._holding.wait()
            await anyio.sleep(self._visibility / 3)
            if not self._held:
                self._holding = anyio.Event()
                continue
            with suppress(InfrastructureError):
                await self._run(scripts.RENEW, self._visibility_ms, *self._held)

    async def _run(self, script: LuaScript, *args: str | bytes | int) -> Any:
        return await self._connection.run(script, (), (*self._begin, *args))

    def _ask_again(self) -> None:
        """Let refusals until now count no more. Nothing to do when there is none and none can be on its way."""
        if self._refused or self._asking:
            self._round += 1
            self._refused.clear()
            self._seen_empty = False
            self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _retry_after(mean_ms: int) -> int:
    """Return when the next item leaves, from the last turns."""
    if mean_ms < 0:
        return _UNKNOWN_RETRY_SECONDS
    return min(max(math.ceil(mean_ms / 1000), _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
