"""Clock: the only source of time for the core."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Time, wall and monotonic.

    Promises: `now` is aware and in UTC; `monotonic` never goes back; `sleep_until` returns at or after its
    deadline, at once when that has passed, and is cancellable.
    """

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start."""
        ...

    async def sleep_until(self, deadline: float) -> None:
        """Sleep until `monotonic()` is at least `deadline`."""
        ...
