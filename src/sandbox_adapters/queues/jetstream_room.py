"""Room: whether one more item may wait in NATS."""

from __future__ import annotations

import time
from typing import Final

from sandbox_adapters.queues.jetstream_streams import Streams, principal_token
from sandbox_adapters.queues.pace import Pace
from sandbox_core.domain.errors import ServerFull
from sandbox_core.ports.queue import QueueItem

FEW_ENTRIES: Final = 100
"""A list of what waits that is no longer may be read as often as there is a reason."""

ENTRIES_PER_SECOND: Final = 2000
"""A longer list counts for so long that no process reads more entries of it than this, in the mean."""

_LONGEST_SECONDS: Final = 5.0
_MOST_REFUSALS: Final = 1000


def good_for_seconds(entries: int) -> float:
    """Return how long a list of this length counts."""
    return min(_LONGEST_SECONDS, max(0, entries - FEW_ENTRIES) / ENTRIES_PER_SECOND)


class Room:
    """Counts what waits. What is marked takes no room; the marks are counted only when they matter.

    A refusal that needed a long list is repeated for as long as that list counts, so that who asks again and again
    costs nothing.

    Args:
        max_depth: how many items may wait in all.
        max_per_principal: how many items of one principal may wait.
    """

    def __init__(self, streams: Streams, *, max_depth: int, max_per_principal: int) -> None:
        self._streams = streams
        self._max_depth = max_depth
        self._max_per_principal = max_per_principal
        self._pace = Pace()
        self._refusals: dict[str | None, tuple[float, str]] = {}

    async def after(self, item: QueueItem) -> int | None:
        """Return the number of the last message as of the count that left room; None when the item waits already.

        Raises ServerFull.
        """
        principal = principal_token(item.principal)
        self._repeat_refusal(principal)
        found = await self._streams.waiting(of=principal if self._max_per_principal < self._max_depth else None)
        self._pace.saw(found.last_sequence - found.messages)
        if found.messages < self._max_depth and len(found.entries) < self._max_per_principal:
            return found.last_sequence
        listed, marked = await self._streams.listed(), await self._streams.marked()
        if item.execution_id in listed.entries:
            return None
        waiting = [lane.principal for execution_id, lane in listed.entries.items() if execution_id not in marked]
        until = time.monotonic() + good_for_seconds(len(listed.entries))
        if len(waiting) >= self._max_depth:
            raise self._refusal(None, until, f"{len(waiting)} executions are waiting already")
        if (mine := waiting.count(principal)) >= self._max_per_principal:
            raise self._refusal(principal, until, f"{mine} of your executions are waiting already")
        return found.last_sequence

    def _refusal(self, whose: str | None, until: float, said: str) -> ServerFull:
        if len(self._refusals) >= _MOST_REFUSALS:
            self._refusals.clear()
        self._refusals[whose] = (until, said)
        return ServerFull(said, self._pace.retry_after())

    def _repeat_refusal(self, principal: str) -> None:
        for whose in (None, principal):
            until, said = self._refusals.get(whose, (0.0, ""))
            if time.monotonic() < until:
                raise ServerFull(said, self._pace.retry_after())
