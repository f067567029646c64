"""ExecutionQueue: what is to be started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sandbox_core.domain.ids import ExecutionId, Principal, SessionId


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A pending execution, with what fairness and admission need to know of it.

    `labels` are sorted; only a taker that offers all of them gets the item.
    """

    execution_id: ExecutionId
    principal: Principal
    session_id: SessionId | None
    queued_at: datetime
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """An item handed to a taker, until `done` or `give_back`. `receipt` is the adapter's own."""

    item: QueueItem
    receipt: str = ""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What waits, over all processes that share the queue.

    `oldest_queued_at` is when what waits longest was queued; None when nothing waits, and where the engine cannot tell.
    """

    depth: int
    oldest_queued_at: datetime | None = None


Admit = Callable[[QueueItem], Awaitable[bool]]
"""Asked before an item is handed over; False leaves it waiting (its session or principal has no place)."""


class ExecutionQueue(Protocol):
    """Pending executions between front and back.

    Promises: at least once (an item is handed out again when its taker is gone before `done`); bounded, in all and per
    principal; fair: principals are served in turn, and inside one its sessions in turn, each in order of arrival, so
    that neither an item refused by `admit` nor a long lane holds up another lane. Items of one session with other
    labels are in another lane, so that what nobody here may take holds up nothing.
    """

    async def put(self, item: QueueItem) -> None:
        """Add an item. Raises ServerFull, with the time to try again, when a bound is reached."""
        ...

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        """Wait for the next item that `admit` accepts. Pushed, not polled; a cancelled take loses nothing.

        Only items whose labels are all in `offers` (at most 16) are asked about; an item without labels always may be.
        A taker that may not take an item takes no wake-up for it from one that may. Items refused are asked about again
        after `recheck`, a `put` or a `done`, not in a loop.
        """
        ...

    async def done(self, delivery: Delivery) -> None:
        """The item was claimed or needs no start: forget it. Again is no error."""
        ...

    async def give_back(self, delivery: Delivery) -> None:
        """The item was not started: put it back at the head of its lane."""
        ...

    async def remove(self, execution_id: ExecutionId) -> bool:
        """Drop a waiting item; False when it is not waiting here (taken, or unknown)."""
        ...

    async def recheck(self) -> None:
        """Places were released: ask `admit` again about refused items."""
        ...

    async def close(self) -> Sequence[QueueItem]:
        """Stop for good: return, and forget, the waiting items that no other process could ever take.

        A queue that other processes share returns none. `put` raises ServerDraining afterwards.
        """
        ...

    async def depth(self) -> int:
        """Return how many items wait."""
        ...

    async def stats(self) -> QueueStats:
        """Return how many items wait and since when; one question to the engine, however much waits."""
        ...
