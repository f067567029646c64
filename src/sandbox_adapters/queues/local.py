"""LocalQueue: pending executions between a front and backs in one process."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

import anyio
import anyio.lowlevel

from sandbox_adapters.clock import SystemClock
from sandbox_core.domain.errors import ServerDraining, ServerFull
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import Admit, Delivery, QueueItem, QueueStats

_TURNS = 16
"""How many of the last turns the estimate of the waiting time looks at."""

_LET_TAKE_SECONDS = 1.0
"""How long what arrives at a full queue waits for takers that are about to make room; `admit` may hang."""

_WAY_BACK_TURNS = 8
"""Turns of the event loop in which a taker that has what it took started is back: it needs two or three."""

_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS, _UNKNOWN_RETRY_SECONDS = 1, 30, 5


class _Lane:
    """The waiting items of one session of one principal with the same labels, in order of arrival."""

    __slots__ = ("asked", "dropped", "items", "labels", "refused_in")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.items: deque[QueueItem] = deque()
        self.asked: QueueItem | None = None
        """The item that a taker is asking `admit` about."""
        self.dropped = False
        """`asked` was removed meanwhile: forget it when it is refused."""
        self.refused_in = -1
        """The round in which `admit` refused the head."""


_Key = tuple[SessionId | None, tuple[str, ...]]
_Lanes = OrderedDict[_Key, _Lane]


def _key(item: QueueItem) -> _Key:
    return item.session_id, item.labels


class LocalQueue:
    """ExecutionQueue in the memory of this process. Satisfies `ExecutionQueue`; use on one event loop.

    A taker that dies takes this queue with it, so an item is handed out again only after `give_back`. While `admit` is
    asked about an item, `remove` answers False for it, as for one that was taken.

    Args:
        max_depth: how many items may wait in all.
        max_per_principal: how many items of one principal may wait; None is `max_depth`.
        clock: where time comes from, for the estimate in ServerFull; the machine's when None.
    """

    def __init__(
        self, *, max_depth: int = 100, max_per_principal: int | None = None, clock: Clock | None = None
    ) -> None:
        self._max_depth = max_depth
        self._max_per_principal = max_depth if max_per_principal is None else max_per_principal
        self._clock = clock if clock is not None else SystemClock()
        # Served from the front; who was served goes to the back.
        self._ring: OrderedDict[Principal, _Lanes] = OrderedDict()
        self._waiting: dict[ExecutionId, QueueItem] = {}
        self._taken: dict[str, Delivery] = {}
        self._receipts = 0
        self._closed = False
        # A refusal counts for the round in which the question began: a release during the question is not missed.
        self._round = 0
        self._changed = anyio.Event()
        # Those in `take`, and those of them who found nothing to ask about since the last change.
        self._takers = 0
        self._resting = 0
        # Set when a taker rests or leaves; there while somebody waits for it.
        self._taker_moved: anyio.Event | None = None
        # How long the last hand-overs took while items waited, in seconds, and when the one to come began.
        self._turns: deque[float] = deque(maxlen=_TURNS)
        self._turn_began = 0.0

    async def put(self, item: QueueItem) -> None:
        """Add an item; again, while it waits, is no error. ServerFull says 1 to 30 seconds, from the last turns."""
        if self._closed:
            raise ServerDraining
        if item.execution_id in self._waiting:
            return
        if self._too_many(item.principal):
            await self._let_take(item.principal)
            if self._closed:
                raise ServerDraining
        if too_many := self._too_many(item.principal):
            raise ServerFull(f"{too_many} are waiting already", self._retry_after())
        self._lane(item).items.append(item)
        self._enter(item)

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts. An error of `admit` passes, and the item keeps waiting."""
        self._takers += 1
        try:
            while True:
                choice = self._choose(offers)
                if choice is None:
                    await self._rest()
                    continue
                lane, item = choice
                if await self._ask(admit, lane, item):
                    # No await since the answer: a cancellation finds the item either waiting or delivered.
                    return self._hand_over(item, lane)
        finally:
            self._takers -= 1
            self._tell_putters()

    async def done(self, delivery: Delivery) -> None:
        """Forget the item."""
        self._taken.pop(delivery.receipt, None)
        self._wake()

    async def give_back(self, delivery: Delivery) -> None:
        """Put the item back, in front of everything. No error, and no effect, after `done`."""
        if self._taken.pop(delivery.receipt, None) is None:
            return
        item = delivery.item
        lane = self._lane(item)
        lane.items.appendleft(item)
        self._ring[item.principal].move_to_end(_key(item), last=False)
        self._ring.move_to_end(item.principal, last=False)
        self._enter(item)

    async def remove(self, execution_id: ExecutionId) -> bool:
        """Drop a waiting item."""
        item = self._waiting.get(execution_id)
        if item is None:
            return False
        lane = self._lane(item)
        if lane.asked is item:
            lane.dropped = True
            return False
        self._forget(item, lane)
        self._wake()
        return True

    async def recheck(self) -> None:
        """Ask `admit` again about refused items."""
        self._wake()

    async def close(self) -> Sequence[QueueItem]:
        """Return and forget everything that waits, once the questions that takers are asking are answered.

        Takers get nothing more.
        """
        self._closed = True
        while any(lane.asked is not None for lanes in self._ring.values() for lane in lanes.values()):
            await self._changed.wait()
        waiting = list(self._waiting.values())
        for item in waiting:
            self._forget(item, self._lane(item))
        return waiting

    @property
    def waiting(self) -> Sequence[ExecutionId]:
        """What waits now, in no order."""
        return list(self._waiting)

    @property
    def room(self) -> int:
        """How many more may wait in all."""
        return self._max_depth - len(self._waiting)

    async def depth(self) -> int:
        """Return how many items wait."""
        return len(self._waiting)

    async def stats(self) -> QueueStats:
        """Return how many items wait, and since when."""
        heads = (lane.items[0].queued_at for lanes in self._ring.values() for lane in lanes.values())
        return QueueStats(len(self._waiting), min(heads, default=None))

    async def _ask(self, admit: Admit, lane: _Lane, item: QueueItem) -> bool:
        lane.asked, round_asked = item, self._round
        admitted = False
        try:
            admitted = await admit(item)
            if not admitted:
                lane.refused_in = round_asked
        finally:
            dropped, lane.asked, lane.dropped = lane.dropped, None, False
            if dropped and not admitted:
                self._forget(item, lane)
            self._signal()
        return admitted

    async def _rest(self) -> None:
        changed = self._changed
        self._resting += 1
        self._tell_putters()
        try:
            await changed.wait()
        finally:
            if changed is self._changed:
                self._resting -= 1

    def _too_many(self, principal: Principal) -> str:
        """Say what waits already where one more of this principal has no room; "" where it has."""
        if len(self._waiting) >= self._max_depth:
            return f"{len(self._waiting)} executions"
        lanes: _Lanes = self._ring.get(principal, OrderedDict())
        if sum(len(lane.items) for lane in lanes.values()) >= self._max_per_principal:
            return f"{self._max_per_principal} of your executions"
        return ""

    async def _let_take(self, principal: Principal) -> None:
        """Return when one more has room, or when nobody is about to take anything.

        What arrives at once waits here only until it is taken: without this a server with free places would call itself
        full. A taker that is not there may be on its way back, which takes a few turns of the event loop.
        """
        turns = 0
        with anyio.move_on_after(_LET_TAKE_SECONDS):
            while self._too_many(principal) and not self._closed and turns < _WAY_BACK_TURNS:
                if self._takers > self._resting:
                    turns = 0
                    self._taker_moved = self._taker_moved or anyio.Event()
                    await self._taker_moved.wait()
                elif self._takers:
                    return
                else:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

    def _tell_putters(self) -> None:
        if self._taker_moved is not None:
            self._taker_moved.set()
            self._taker_moved = None

    def _enter(self, item: QueueItem) -> None:
        if not self._waiting:
            self._turn_began = self._clock.monotonic()
        self._waiting[item.execution_id] = item
        self._wake()

    def _lane(self, item: QueueItem) -> _Lane:
        lanes = self._ring.setdefault(item.principal, OrderedDict())
        return lanes.setdefault(_key(item), _Lane(item.labels))

    def _choose(self, offers: frozenset[str]) -> tuple[_Lane, QueueItem] | None:
        """Return the next item to ask about: first of principals that nobody is asking about, then of the others."""
        if self._closed:
            return None
        for busy in (False, True):
            for lanes in self._ring.values():
                if any(lane.asked is not None for lane in lanes.values()) is busy:
                    for lane in self._askable(lanes, offers):
                        return lane, lane.items[0]
        return None

    def _askable(self, lanes: _Lanes, offers: frozenset[str]) -> Iterator[_Lane]:
        return (
            lane
            for lane in lanes.values()
            if lane.asked is None and lane.refused_in != self._round and offers.issuperset(lane.labels)
        )

    def _hand_over(self, item: QueueItem, lane: _Lane) -> Delivery:
        self._forget(item, lane)
        if (lanes := self._ring.get(item.principal)) is not None:
            self._ring.move_to_end(item.principal)
            if _key(item) in lanes:
                lanes.move_to_end(_key(item))
        self._receipts += 1
        delivery = Delivery(item, str(self._receipts))
        self._taken[delivery.receipt] = delivery
        now = self._clock.monotonic()
        self._turns.append(now - self._turn_began)
        self._turn_began = now
        return delivery

    def _forget(self, item: QueueItem, lane: _Lane) -> None:
        lane.items.remove(item)
        del self._waiting[item.execution_id]
        lane.refused_in = -1
        if not lane.items:
            lanes = self._ring[item.principal]
            del lanes[_key(item)]
            if not lanes:
                del self._ring[item.principal]

    def _wake(self) -> None:
        self._round += 1
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        self._resting = 0

    def _retry_after(self) -> int:
        """Estimate when the next item leaves: the mean of the last turns, or the present one if that is longer."""
        if not self._turns:
            return _UNKNOWN_RETRY_SECONDS
        present = self._clock.monotonic() - self._turn_began if self._waiting else 0.0
        seconds = max(present, sum(self._turns) / len(self._turns))
        return min(max(math.ceil(seconds), _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
