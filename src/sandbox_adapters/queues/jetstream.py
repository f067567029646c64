"""JetStreamQueue: pending executions between fronts and backs in many processes, kept by NATS JetStream.

See jetstream_streams for what is kept where, and docs/adr/0013-queue-in-nats-jetstream.md for why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import anyio
import anyio.lowlevel

from sandbox_adapters.background import Background
from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.queues.jetstream_room import Room, good_for_seconds
from sandbox_adapters.queues.jetstream_streams import Mark, Stored, Streams, Waiting, lane_of
from sandbox_adapters.queues.jetstream_turns import Lane, Turns
from sandbox_adapters.queues.jetstream_wakes import Wakes
from sandbox_adapters.queues.redis_items import decode_item
from sandbox_adapters.queues.wake_listener import WakeListener
from sandbox_core.domain.errors import InfrastructureError, ServerDraining, ServerFull, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.queue import Admit, Delivery, QueueItem, QueueStats

_log = logging.getLogger("sandbox_adapters.queue")

LOOK_SECONDS: Final = 5.0
"""A taker that nobody wakes looks so often at an empty queue, for a notice that went to a process that died."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An item that this process asks about, or has handed over."""

    item: QueueItem
    lane: Lane
    sequence: int
    mark: Mark


class JetStreamQueue(Background):
    """ExecutionQueue over NATS JetStream. Satisfies `ExecutionQueue` while its context lasts; asyncio only.

    An item stays in its stream until it is done; while a taker asks about it or has it, a mark keeps others away. The
    mark goes, and the item is handed out again, `visibility_seconds` after the taker's process was last heard of.
    Bounds are those of the process that puts, and exact over all processes: an item is stored only if nothing else was
    stored since the count. Each process keeps its own order of turns. `close` returns nothing: others take what waits.

    What `admit` refused here is asked about again after `recheck`, `put` or `done` in this process.

    Args:
        connection: entered before this and left after it.
        max_depth: how many items may wait in all.
        max_per_principal: how many items of one principal may wait; None is `max_depth`.
        visibility_seconds: see above.
    """

    def __init__(
        self,
        *,
        connection: NatsConnection,
        max_depth: int = 100,
        max_per_principal: int | None = None,
        visibility_seconds: float = 9.0,
    ) -> None:
        super().__init__(self._renew)
        self._connection = connection
        self.streams = Streams(connection, visibility_seconds=visibility_seconds)
        self._wakes = Wakes(connection)
        self._listeners: dict[frozenset[str], WakeListener] = {}
        self._max_depth = max_depth
        most_of_one = max_depth if max_per_principal is None else max_per_principal
        self._room = Room(self.streams, max_depth=max_depth, max_per_principal=most_of_one)
        self._visibility = visibility_seconds
        self._closed = False
        self._putting = anyio.Lock()
        self._turns = Turns()
        self._listed: Waiting | None = None
        self._listed_until = 0.0
        # As in LocalQueue: a refusal counts for the round in which its question began.
        self._round = 0
        self._refused: set[Lane] = set()
        self._asking: set[Lane] = set()
        self._changed = anyio.Event()
        self._receipts = count(1)
        self._held: dict[str, _Held] = {}
        self._holding = anyio.Event()

    async def put(self, item: QueueItem) -> None:
        """Add an item; again, while it waits, is no error. Raises ServerFull, StoreUnavailable, ServerDraining."""
        if self._closed:
            raise ServerDraining
        give_up_at = time.monotonic() + self._connection.options.timeout_seconds
        async with self._putting:
            while True:
                after = await self._room.after(item)
                if after is None:
                    return
                if await self.streams.put(item, after=after):
                    break
                if time.monotonic() > give_up_at:
                    raise ServerFull("too many executions are being queued at this moment", 1)
        lane = lane_of(item)
        if len(self._turns) < self._max_depth:  # who never takes forgets none of them
            self._turns.enter(lane)
        self._listed = None
        self._ask_again()
        await self._wakes.tell(lane)

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts. An error of `admit` passes, and the item keeps waiting."""
        listener = self._listener(offers)
        with listener.taking():
            while True:
                changed, round_asked = self._changed, self._round
                receipt = await self._choose(offers)
                if receipt is None:
                    await listener.wait_for(changed)
                    continue
                held = self._held[receipt]
                if await self._ask(admit, receipt, held):
                    # No await since the answer: a cancellation finds the item either waiting or delivered.
                    self._turns.served(held.lane)
                    return Delivery(held.item, receipt)
                if round_asked == self._round:
                    self._refused.add(held.lane)
                self._signal()

    async def done(self, delivery: Delivery) -> None:
        """Forget the item. When NATS is away it comes back later and its claim is refused: no error here."""
        held = self._held.pop(delivery.receipt, None)
        if held is not None:
            try:
                await self.streams.drop(held.sequence)
                await self.streams.unmark(held.mark)
            except InfrastructureError as error:
                _log.warning("%s will be handed out again, in vain: %s", delivery.item.execution_id, error)
        self._ask_again()

    async def give_back(self, delivery: Delivery) -> None:
        """Let the item be taken again: it never left its place. No error, and no effect, after `done`."""
        held = self._held.get(delivery.receipt)
        if held is not None:
            await self._let_go(delivery.receipt)
            self._turns.first(held.lane)
            await self._wakes.tell(held.lane)
            self._look()
        self._ask_again()

    async def remove(self, execution_id: ExecutionId) -> bool:
        """Drop a waiting item; False also for one that a taker asks about."""
        lane = await self.streams.find(execution_id)
        if lane is None:
            return False
        mark = await self.streams.mark(lane, execution_id)
        if mark is None:
            return False
        removed = await self.streams.drop_item(lane, execution_id)
        await self.streams.unmark(mark)
        self._ask_again()
        return removed

    async def recheck(self) -> None:
        """Ask `admit` again about what was refused here. No word to NATS when nothing was."""
        self._ask_again()

    async def close(self) -> Sequence[QueueItem]:
        """Take nothing into the queue any more; what waits stays for others."""
        self._closed = True
        return []

    async def depth(self) -> int:
        """Return how many items wait, over all processes."""
        found = await self.streams.waiting()
        return max(0, found.messages - await self.streams.marks()) if found.messages else 0

    async def stats(self) -> QueueStats:
        """Return how many items wait, and since when the first of them that was stored."""
        found = await self.streams.waiting()
        if not found.messages:
            return QueueStats(0)
        marked = await self.streams.marked()
        stored = await self.streams.head(None)
        while stored is not None and stored.execution_id in marked:
            stored = await self.streams.head(None, start=stored.sequence + 1)
        depth = max(0, found.messages - len(marked))
        if stored is None or not depth:
            return QueueStats(0)
        try:
            return QueueStats(depth, _decoded(stored).queued_at)
        except StoredDataCorrupt:
            return QueueStats(depth)  # a taker drops it

    async def waiting(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of these ids that are here, waiting or taken."""
        entries = (await self.streams.listed()).entries
        return {raw for raw in ids if raw.decode(errors="replace") in entries}

    async def _choose(self, offers: frozenset[str]) -> str | None:
        """Mark the next item that may be asked about, and return its receipt. Its lane then is in `_asking`."""
        is_fresh = self._listed is None or time.monotonic() >= self._listed_until
        while True:
            if is_fresh:
                await self._list()
            for lane in self._turns.order(self._asking):
                if lane.needs <= offers and lane not in self._asking and lane not in self._refused:
                    receipt = await self._take_head(lane)
                    if receipt is not None:
                        return receipt
            if is_fresh:
                return None
            is_fresh = True

    async def _list(self) -> None:
        self._listed = None
        listed = await self.streams.listed()
        self._turns.keep(listed.entries.values())
        self._listed = listed
        self._listed_until = time.monotonic() + good_for_seconds(len(listed.entries))

    async def _take_head(self, lane: Lane) -> str | None:
        """Mark the first item of a lane that nobody else has marked."""
        receipt, start = None, 0
        self._asking.add(lane)
        try:
            while receipt is None:
                stored = await self.streams.head(lane, start=start)
                if stored is None:
                    self._turns.leave(lane)
                    break
                start = stored.sequence + 1
                # Whole even when cancelled: `_ask` then takes the mark away.
                with anyio.CancelScope(shield=True):
                    receipt = await self._mark(stored, lane)
        finally:
            if receipt is None:
                self._asking.discard(lane)
        return receipt

    async def _mark(self, stored: Stored, lane: Lane) -> str | None:
        try:
            item = _decoded(stored)
        except StoredDataCorrupt as error:
            _log.error("dropped from the queue: %s", error)
            await self.streams.drop(stored.sequence)
            return None
        mark = await self.streams.mark(lane, stored.execution_id)
        if mark is None:
            return None
        # Who had marked it before may have finished with it since it was read.
        if not await self.streams.is_there(stored.sequence):
            await self.streams.unmark(mark)
            return None
        receipt = str(next(self._receipts))
        self._held[receipt] = _Held(item, lane, stored.sequence, mark)
        self._holding.set()
        return receipt

    async def _ask(self, admit: Admit, receipt: str, held: _Held) -> bool:
        admitted = False
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._listed is not None:
                await self._wakes.tell_of_more(held.lane, self._listed.entries.values())
            admitted = await admit(held.item)
        finally:
            if not admitted:
                await self._let_go(receipt)
            self._asking.discard(held.lane)
            self._signal()
        return admitted

    async def _let_go(self, receipt: str) -> None:
        """Take the mark away. When NATS is away it goes by itself, not being renewed."""
        held = self._held.pop(receipt, None)
        if held is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self.streams.unmark(held.mark)
            except InfrastructureError as error:
                _log.warning("%s can be taken again in %g s: %s", held.item.execution_id, self._visibility, error)

    def _listener(self, offers: frozenset[str]) -> WakeListener:
        listener = self._listeners.get(offers)
        if listener is None:
            listener = WakeListener(
                self._connection, self._wakes.subjects(offers), look_in=self._look_seconds, look=self._look
            )
            self._listeners[offers] = listener
            if self._tasks is not None:
                self._tasks.start_soon(listener.run)
        return listener

    def _look_seconds(self) -> float:
        """Return how long to wait for a notice: marks of the dead go without one."""
        if self._listed is not None and not self._listed.entries:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.05, self._visibility / 3))

    async def _renew(self) -> None:
        """Renew the marks of what is held, for as long as this process lives."""
        while True:
            await self._holding.wait()
            await anyio.sleep(self._visibility / 3)
            if not self._held:
                self._holding = anyio.Event()
            for receipt, held in list(self._held.items()):
                try:
                    if receipt in self._held:
                        await self.streams.renew(held.mark)
                except InfrastructureError as error:
                    _log.warning("the mark on %s was not renewed: %s", held.item.execution_id, error)

    def _ask_again(self) -> None:
        """Let refusals until now count no more. Nothing to do when there is none and none can be on its way."""
        if self._refused or self._asking:
            self._round += 1
            self._refused.clear()
            self._signal()

    def _look(self) -> None:
        self._listed = None
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _decoded(stored: Stored) -> QueueItem:
    lane, _, raw = stored.data.partition(b" ")
    item = decode_item(raw, stored.execution_id.encode(), lane)
    if lane_of(item) != stored.lane:
        raise StoredDataCorrupt("an item of the queue", "it is another one than its subject says")
    return item
