"""RabbitQueue: pending executions between fronts and backs in many processes, kept by RabbitMQ.

A fixed number of quorum queues, the buckets, hold the items and hand them out; a small index in Redis counts them and
says whose turn it is. Why so: docs/adr/0012-queues-on-rabbitmq.md.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from itertools import count
from typing import Final

import anyio
import anyio.lowlevel

from sandbox_adapters.background import Background
from sandbox_adapters.queues.pace import Pace
from sandbox_adapters.queues.rabbitmq_index import FULL, FULL_FOR_ONE, NO_BUCKET, SPARE_DEAD, Bucket, RabbitIndex
from sandbox_adapters.queues.redis_items import decode_item, encode_item, lane_of
from sandbox_adapters.queues.wake_listener import WakeListener
from sandbox_adapters.rabbitmq_connection import Fetched, NoAnswer, RabbitConnection
from sandbox_adapters.redis_connection import RedisConnection
from sandbox_core.domain.errors import InfrastructureError, ServerDraining, ServerFull, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.queue import Admit, Delivery, QueueItem, QueueStats

_log = logging.getLogger("sandbox_adapters.queue")

LOOK_SECONDS: Final = 2.0
"""A taker that nobody wakes looks so often, for what a dead taker left."""

STUCK_SECONDS: Final = 20.0
"""A bucket that did not answer is left alone for so long: one that RabbitMQ lost in a crash never does."""

ASIDE: Final = 16
"""Messages that a taker puts aside at most while it looks behind what it may not take, in a bucket of several lanes."""


class RabbitQueue(Background):
    """ExecutionQueue over RabbitMQ. Satisfies `ExecutionQueue` while its context lasts; asyncio only.

    RabbitMQ puts an item back as soon as the connection of its taker is gone, and it counts as waiting again after
    `hold_seconds`. Bounds are those of the process that puts, and exact over all processes. `close` returns nothing:
    others may take what waits.

    Turns are exact while there are no more lanes that wait than half the buckets. Lanes beyond share buckets: they are
    served there in order of arrival, and held up there by more than `ASIDE` items that a taker may not have.

    Args:
        connection: to RabbitMQ; entered before this and left after it.
        state: to the Redis of the state, likewise.
        max_depth: how many items may wait in all.
        max_per_principal: how many items of one principal may wait; None is `max_depth`.
        hold_seconds: see above.
        ttl_seconds: how long a pending execution may live without an access.
    """

    def __init__(
        self,
        *,
        connection: RabbitConnection,
        state: RedisConnection,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        hold_seconds: float = 30.0,
        ttl_seconds: float = 3600.0,
    ) -> None:
        super().__init__()
        self._connection = connection
        self._index = RabbitIndex(state, buckets=connection.buckets, hold_seconds=hold_seconds, ttl_seconds=ttl_seconds)
        self._max_depth = max_depth
        self._max_per_principal = max_depth if max_per_principal is None else max_per_principal
        self._pace = Pace()
        self._closed = False
        self._listeners: dict[frozenset[str], WakeListener] = {}
        # As in LocalQueue: a refusal counts for the round in which its question began.
        self._round = 0
        self._refused: set[str] = set()
        self._refused_heads: set[tuple[int, int]] = set()
        self._asking: dict[int, str | None] = {}
        self._changed = anyio.Event()
        self._receipts = count(1)
        self._held: dict[str, Fetched] = {}
        self._stuck: dict[int, float] = {}

    async def put(self, item: QueueItem) -> None:
        """Add an item; again, while it waits, is no error. Raises ServerFull, StoreUnavailable, ServerDraining."""
        if self._closed:
            raise ServerDraining
        await self._connection.ready()
        placed = await self._index.put(
            item,
            max_depth=self._max_depth,
            max_per_principal=self._max_per_principal,
            avoid=self._left_alone(),
        )
        self._pace.saw(placed.left)
        if placed.refused == FULL:
            raise ServerFull(f"{placed.count} executions are waiting already", self._pace.retry_after())
        if placed.refused == FULL_FOR_ONE:
            raise ServerFull(f"{placed.count} of your executions are waiting already", self._pace.retry_after())
        if placed.refused == NO_BUCKET:
            raise NoAnswer("no queue of RabbitMQ answers")
        if placed.bucket is None:
            return
        try:
            await self._connection.put(placed.bucket, item.execution_id, encode_item(item).encode())
        except BaseException as error:
            if isinstance(error, NoAnswer):
                self._leave_alone(placed.bucket)
            await self._forget(item.execution_id)
            raise
        await self._ring(bool(item.labels))
        self._ask_again()
        self._signal()

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts. An error of `admit` passes, and the item keeps waiting."""
        listener = self._listener(offers)
        with listener.taking():
            while True:
                changed = self._changed
                await self._connection.ready()
                delivery = await self._choose(admit, offers)
                if delivery is not None:
                    # No await since it was handed over: a cancellation finds the item either waiting or delivered.
                    return delivery
                await listener.wait_for(changed)

    async def done(self, delivery: Delivery) -> None:
        """Forget the item. When RabbitMQ or Redis is away it comes back in vain, or counts for a while: no error."""
        held = self._held.pop(delivery.receipt, None)
        if held is not None:
            # In this order: what dies in between is handed out, and known to be done.
            await self._forget(delivery.item.execution_id)
            await self._acknowledge(held)
        self._ask_again()

    async def give_back(self, delivery: Delivery) -> None:
        """Put the item back, in front of everything. No error, and no effect, after `done`."""
        held = self._held.pop(delivery.receipt, None)
        if held is not None:
            await self._connection.give_back(held)
            await self._index.give_back(delivery.item.execution_id)
            await self._ring(bool(delivery.item.labels))
            self._signal()
        self._ask_again()

    async def remove(self, execution_id: ExecutionId) -> bool:
        """Drop a waiting item. Its message goes when it is found, or when there are many of the kind."""
        removed = await self._index.remove(execution_id)
        if removed.was_waiting and removed.dead > removed.others + SPARE_DEAD:
            try:
                await self._sweep(removed.bucket, removed.dead + removed.others + SPARE_DEAD)
            except InfrastructureError as error:
                _log.warning("messages of removed items stay for now: %s", error)
        self._ask_again()
        return removed.was_waiting

    async def recheck(self) -> None:
        """Ask `admit` again about what was refused here. No word to anybody when nothing was."""
        self._ask_again()

    async def close(self) -> Sequence[QueueItem]:
        """Take nothing into the queue any more; what waits stays for others."""
        self._closed = True
        return []

    async def depth(self) -> int:
        """Return how many items wait, over all processes. Raises StoreUnavailable also when RabbitMQ is away."""
        return (await self.stats()).depth

    async def stats(self) -> QueueStats:
        """Return how many items wait, and since when, in one script. Raises as `depth`."""
        self._connection.check()
        return await self._index.stats()

    async def waiting(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of these ids that are here, waiting or taken."""
        return await self._index.known(list(ids))

    async def _choose(self, admit: Admit, offers: frozenset[str]) -> Delivery | None:
        """Ask about what waits, bucket by bucket, in the order of turns."""
        while True:
            buckets = await self._index.buckets()
            busy = set(self._asking.values())
            skipped = {*self._asking, *self._left_alone()}
            turns = [bucket for bucket in buckets if bucket.may_suit(offers) and bucket.number not in skipped]
            again = False
            for bucket in sorted(turns, key=lambda one: one.owner in busy):
                if bucket.number in self._asking or (bucket.number, bucket.place) in self._refused_heads:
                    continue
                round_asked = self._round
                self._asking[bucket.number] = bucket.owner
                try:
                    found = await self._look_into(bucket, admit, offers)
                finally:
                    del self._asking[bucket.number]
                    self._signal()
                if found is not None:
                    await self._ring_for_more(buckets, found.item)
                    return found
                if round_asked != self._round:
                    again = True
            if not again:
                return None

    async def _look_into(self, bucket: Bucket, admit: Admit, offers: frozenset[str]) -> Delivery | None:
        """Take the first item that `admit` accepts, and put back what was passed over, in its order."""
        aside: list[Fetched] = []
        finished, round_asked = False, self._round
        try:
            while len(aside) < (1 if bucket.lanes == 1 else ASIDE):
                fetched = await self._fetch(bucket.number)
                if fetched is None:
                    if not aside:
                        await self._miss(bucket.number)
                    break
                aside.append(fetched)
                item = await self._item_of(fetched, bucket.number)
                if item is None:
                    aside.pop()
                    continue
                if await self._is_admitted(item, admit, offers):
                    with anyio.CancelScope(shield=True):
                        await self._index.hand_over(item.execution_id)
                        delivery = Delivery(item, str(next(self._receipts)))
                        self._held[delivery.receipt] = aside.pop()
                        finished = True
                        await self._put_back(aside)
                    return delivery
            finished = True
            await self._put_back(aside)
            if aside and bucket.lanes == 1 and round_asked == self._round:
                self._refused_heads.add((bucket.number, bucket.place))
            return None
        finally:
            if not finished:
                with anyio.CancelScope(shield=True):
                    await self._put_back(aside)
                    if bucket.labels != frozenset():
                        await self._ring(True)
                    if not bucket.labels:
                        await self._ring(False)

    async def _fetch(self, bucket: int) -> Fetched | None:
        try:
            return await self._connection.fetch(bucket)
        except NoAnswer:
            self._leave_alone(bucket)
            await self._miss(bucket)
            raise

    async def _is_admitted(self, item: QueueItem, admit: Admit, offers: frozenset[str]) -> bool:
        lane, round_asked = lane_of(item), self._round
        if lane in self._refused or not offers.issuperset(item.labels):
            return False
        await anyio.lowlevel.checkpoint_if_cancelled()
        if await admit(item):
            return True
        if round_asked == self._round:
            self._refused.add(lane)
        return False

    async def _item_of(self, fetched: Fetched, bucket: int) -> QueueItem | None:
        """Return the item of a message; None for one that was removed or cannot be read, whose message goes."""
        if await self._index.is_here(fetched.message_id, bucket):
            lane, _, raw = fetched.body.partition(b" ")
            try:
                return decode_item(raw, fetched.message_id.encode(), lane)
            except StoredDataCorrupt as error:
                _log.error("dropped from the queue: %s", error)
                await self._index.forget(fetched.message_id)
        await self._acknowledge(fetched)
        return None

    async def _miss(self, bucket: int) -> None:
        """Note that a bucket is empty which should not be: others ask about what is there, or it is gone for good."""
        forgotten = await self._index.missed(bucket)
        if forgotten:
            _log.error(
                "RabbitMQ has lost %d items in its queue %d: what still waits is queued again", forgotten, bucket
            )

    def _leave_alone(self, bucket: int) -> None:
        _log.error("the queue %d in RabbitMQ does not answer; if that lasts, delete it", bucket)
        self._stuck[bucket] = time.monotonic() + STUCK_SECONDS

    def _left_alone(self) -> list[int]:
        now = time.monotonic()
        self._stuck = {bucket: until for bucket, until in self._stuck.items() if until > now}
        return list(self._stuck)

    async def _sweep(self, bucket: int, most: int) -> None:
        """Take the messages of removed items out of a bucket, and leave the others in their order."""
        kept: list[Fetched] = []
        try:
            for _ in range(most):
                fetched = await self._connection.fetch(bucket)
                if fetched is None:
                    await self._index.swept(bucket)
                    break
                kept.append(fetched)
                if await self._item_of(fetched, bucket) is None:
                    kept.pop()
        finally:
            with anyio.CancelScope(shield=True):
                await self._put_back(kept)
                if kept:
                    await self._ring(False)
                    await self._ring(True)
            self._signal()

    async def _put_back(self, fetched: Sequence[Fetched]) -> None:
        for one in fetched:
            await self._connection.give_back(one)

    async def _forget(self, execution_id: ExecutionId) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._index.forget(execution_id)
        except InfrastructureError as error:
            _log.warning("%s counts as queued for a while: %s", execution_id, error)

    async def _acknowledge(self, fetched: Fetched) -> None:
        try:
            await self._connection.acknowledge(fetched)
        except InfrastructureError as error:
            _log.info("%s comes back, and will be dropped then: %s", fetched.message_id, error)

    async def _ring(self, needs_labels: bool) -> None:
        await self._connection.tell(self._connection.labelled if needs_labels else self._connection.plain)

    async def _ring_for_more(self, buckets: Sequence[Bucket], taken: QueueItem) -> None:
        """Wake one more taker for what waits beside an item."""
        plain = sum(bucket.count for bucket in buckets if not bucket.labels) - (not taken.labels)
        labelled = sum(bucket.count for bucket in buckets if bucket.labels != frozenset()) - bool(taken.labels)
        if plain > 0:
            await self._ring(False)
        if labelled > 0:
            await self._ring(True)

    def _listener(self, offers: frozenset[str]) -> WakeListener:
        listener = self._listeners.get(offers)
        if listener is None:
            subjects = {self._connection.plain: ""}
            if offers:
                group = hashlib.sha256(",".join(sorted(offers)).encode()).hexdigest()[:32]
                subjects[self._connection.labelled] = group
            listener = WakeListener(self._connection, subjects, look_in=lambda: LOOK_SECONDS, look=self._signal)
            self._listeners[offers] = listener
            if self._tasks is not None:
                self._tasks.start_soon(listener.run)
        return listener

    def _ask_again(self) -> None:
        """Let refusals until now count no more. Nothing to do when there is none and none can be on its way."""
        if self._refused or self._asking:
            self._round += 1
            self._refused.clear()
            self._refused_heads.clear()
            self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
