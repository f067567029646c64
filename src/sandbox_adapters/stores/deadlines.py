"""Deadlines: many keys, each with a time; which are due, without a scan."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", str, tuple[str, str])

_SLACK = 64


class Deadlines(Generic[KeyT]):
    """A deadline per key, on any monotonic scale.

    Moving a deadline later costs nothing: the heap entry is put right when it comes up.
    """

    def __init__(self) -> None:
        self._deadlines: dict[KeyT, float] = {}
        self._heap: list[tuple[float, KeyT]] = []

    def __contains__(self, key: KeyT) -> bool:
        return key in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    def get(self, key: KeyT) -> float | None:
        """Return the deadline of `key`, None when it has none."""
        return self._deadlines.get(key)

    def set(self, key: KeyT, deadline: float) -> None:
        """Set or move the deadline of `key`."""
        previous = self._deadlines.get(key)
        self._deadlines[key] = deadline
        if previous is None or deadline < previous:
            heapq.heappush(self._heap, (deadline, key))
            if len(self._heap) > 2 * len(self._deadlines) + _SLACK:
                self._heap = [(at, name) for name, at in self._deadlines.items()]
                heapq.heapify(self._heap)

    def discard(self, key: KeyT) -> None:
        """Forget `key`."""
        self._deadlines.pop(key, None)

    def due(self, now: float, limit: int | None = None) -> list[KeyT]:
        """Return the keys whose deadline is at or before `now`, earliest first, at most `limit`; they stay."""
        found: list[tuple[float, KeyT]] = []
        while self._heap and self._heap[0][0] <= now and (limit is None or len(found) < limit):
            at, key = heapq.heappop(self._heap)
            current = self._deadlines.get(key)
            if current is not None and current > at:
                heapq.heappush(self._heap, (current, key))
            elif current == at and (not found or found[-1] != (at, key)):
                found.append((at, key))
            # Anything else is left over from a deadline that was moved earlier, or from a key that was discarded.
        for entry in found:
            heapq.heappush(self._heap, entry)
        return [key for _, key in found]
