"""Watching executions for callers who subscribed: what is new, at most once a second, within bounds.

News come from the store's own wait, which is pushed and crosses replicas, so nothing here knows what runs where.
They carry no content: "this changed, look if you care". So news that a slow reader has not taken yet swallow further
news of the same thing, and nothing is ever queued up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import anyio

from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound, ServerFull, StoreUnavailable
from sandbox_core.domain.ids import ExecutionId, Principal
from sandbox_core.domain.status import ExecutionStatus

INTERVAL_SECONDS: Final = 1.0
"""The least time between two news of output; the end is told at once."""

STORE_AWAY_SECONDS: Final = 2.0
"""How long a watch rests when the store does not answer."""

MAX_PER_PRINCIPAL: Final = 256
"""Watches of one principal in one process, over all its sessions and streams."""

MAX_WATCHES: Final = 10_000
"""Watches of everybody in one process."""

_PAST_THE_END: Final = 1 << 40
"""A cursor after which no log has events: reading from there tells the state and brings no output."""

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was known of an execution at one instant."""

    status: ExecutionStatus
    last_seq: int


async def look(service: ExecutionService, principal: Principal, execution_id: ExecutionId) -> Seen:
    """Return the state of now. Raises ExecutionNotFound also for what is another principal's."""
    page = await service.read(principal, execution_id, after=_PAST_THE_END, max_events=1, max_bytes=1)
    return Seen(page.execution.status, page.last_seq)


async def watch(
    service: ExecutionService,
    principal: Principal,
    execution_id: ExecutionId,
    seen: Seen,
    tell: Callable[[], None],
    *,
    output: bool,
) -> None:
    """Call `tell` when an execution is no longer as it was seen; return once nothing more can come.

    That is after its end was told (at once when it was seen ended, for whoever read it before that), when it has
    expired, or when the service ends its waits.

    Args:
        output: tell of every new output; otherwise only of another status.
    """
    if seen.status.is_terminal:
        tell()
    going_on, told = True, False
    while going_on and not seen.status.is_terminal:
        try:
            if told and output:
                # More output is gathered for a while, but the end is not made to wait for it.
                await service.wait(principal, execution_id, until_terminal=True, timeout_seconds=INTERVAL_SECONDS)
            going_on = await service.wait(
                principal,
                execution_id,
                after=seen.last_seq,
                until_terminal=not output and seen.status is not ExecutionStatus.PENDING,
            )
            now = await look(service, principal, execution_id)
        except ExecutionNotFound:
            tell()
            return
        except StoreUnavailable:
            await anyio.sleep(STORE_AWAY_SECONDS)
            continue
        told = now != seen if output else now.status is not seen.status
        seen = now
        if told:
            tell()


class Outbox(Generic[Item]):
    """News for one client: each item once until it is taken, oldest first. Never longer than what is watched."""

    def __init__(self) -> None:
        self._items: dict[Item, None] = {}
        self._changed = anyio.Event()
        self._closed = False

    def put(self, item: Item) -> None:
        """Add an item, unless it waits already."""
        self._items[item] = None
        self._changed.set()

    def close(self) -> None:
        """Let `take` return None once everything was taken."""
        self._closed = True
        self._changed.set()

    async def take(self) -> Item | None:
        """Return the oldest item; None when there will be no more."""
        while not self._items:
            if self._closed:
                return None
            self._changed = anyio.Event()
            await self._changed.wait()
        item = next(iter(self._items))
        del self._items[item]
        return item


class WatchPlaces:
    """Counts watches, so that no caller can have more than its share."""

    def __init__(self, *, per_principal: int = MAX_PER_PRINCIPAL, overall: int = MAX_WATCHES) -> None:
        self._per_principal = per_principal
        self._overall = overall
        self._held: Counter[Principal] = Counter()

    def take(self, principal: Principal, count: int = 1) -> None:
        """Count `count` more. Raises ServerFull, and then counts none."""
        if self._held[principal] + count > self._per_principal:
            raise ServerFull(f"one caller may watch {self._per_principal} executions here at once", 10)
        if self._held.total() + count > self._overall:
            raise ServerFull("too many executions are being watched", 10)
        self._held[principal] += count

    def give_back(self, principal: Principal, count: int = 1) -> None:
        """Count `count` less."""
        self._held[principal] -= count
        if not self._held[principal]:
            del self._held[principal]

    @contextmanager
    def held(self, principal: Principal, count: int) -> Iterator[None]:
        """Count `count` more while the context lasts. Raises ServerFull."""
        self.take(principal, count)
        try:
            yield
        finally:
            self.give_back(principal, count)
