"""Counts: what happened in this process since it started, as plain numbers. For one event loop, so without locks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, Protocol, runtime_checkable

from sandbox_core.domain.events import EventKind
from sandbox_core.domain.outcome import TerminationReason

QUEUE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
START_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@runtime_checkable
class RoundTrips(Protocol):
    """A connection that counts what it asks."""

    @property
    def asked(self) -> int:
        """How many commands and scripts were sent."""
        ...

    @property
    def failed(self) -> int:
        """How often the server was away, or refused."""
        ...


class Histogram:
    """How many values were at most each bound. Bounds ascend; what is over the last counts too."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a negative one, of clocks that differ, as 0."""
        value = max(0.0, value)
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bound as Prometheus writes it, with how many values were not over it; `+Inf` is all of them."""
        bounds = (*map(repr, self._bounds), "+Inf")
        return zip(bounds, accumulate(self._counts), strict=True)


class Counts:
    """The counters of one process. Every label that can occur is there from the start, at 0."""

    __slots__ = ("dropped_bytes", "ended", "leases_lost", "output_bytes", "retries", "start_seconds", "time_in_queue")

    def __init__(self) -> None:
        self.ended = dict.fromkeys(TerminationReason, 0)
        self.output_bytes = {EventKind.STDOUT: 0, EventKind.STDERR: 0}
        self.dropped_bytes = 0
        self.leases_lost = 0
        self.retries = 0
        self.time_in_queue = Histogram(QUEUE_SECONDS)
        self.start_seconds = Histogram(START_SECONDS)
