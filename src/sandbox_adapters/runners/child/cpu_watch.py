"""CpuWatch: which jobs have a bound on the CPU time of their whole tree, and when to look at each again."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable

from ..hardening.cgroup_leaf import Leaf  # noqa: TID252 - see child/__init__.py

SHORTEST_SECONDS = 0.05
"""Between two looks at one tree. It may pass its bound by this times the machine's cores."""

LONGEST_SECONDS = 3600.0
"""Between two looks, however far the bound is: poll(2) takes no more than 2^31 ms, and a caller chooses the bound."""


class CpuWatch:
    """Holds only jobs that have such a bound; a loop without one pays nothing.

    The kernel tells nobody that a cgroup has used its CPU time, so each is looked at when every core together could
    have brought it there at the earliest, or after an hour: seldom at first, then more often.
    """

    def __init__(self, *, cores: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._cores = cores or os.cpu_count() or 1
        self._clock = clock
        self._watched: dict[int, tuple[Leaf, float]] = {}
        self._due: list[tuple[float, int]] = []

    def watch(self, number: int, leaf: Leaf, seconds: float) -> None:
        """Look at a job's leaf from now on, which nothing has run in yet."""
        self._watched[number] = leaf, seconds
        self._look_again(number, seconds)

    def forget(self, number: int) -> None:
        """Look at a job no more. Again, and for one that was never watched, is no error."""
        self._watched.pop(number, None)

    def sooner(self, timeout: float) -> float:
        """Return how long to wait at most for something else, `timeout` at most; a negative one is for ever."""
        while self._due and self._due[0][1] not in self._watched:
            heapq.heappop(self._due)
        if not self._due:
            return timeout
        left = max(0.0, self._due[0][0] - self._clock())
        return left if timeout < 0 else min(timeout, left)

    def over(self) -> list[int]:
        """Return the jobs that have used what they may, each once; also one whose leaf cannot be read."""
        found = []
        now = self._clock() if self._due else 0.0
        while self._due and self._due[0][0] <= now:
            _, number = heapq.heappop(self._due)
            if number not in self._watched:
                continue
            leaf, seconds = self._watched[number]
            used = leaf.cpu_seconds()
            if used is None or used >= seconds:
                del self._watched[number]
                found.append(number)
            else:
                self._look_again(number, seconds - used)
        return found

    def _look_again(self, number: int, left: float) -> None:
        wait = min(max(SHORTEST_SECONDS, left / self._cores), LONGEST_SECONDS)
        heapq.heappush(self._due, (self._clock() + wait, number))
