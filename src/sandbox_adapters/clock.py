"""SystemClock: the machine's time."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import anyio
import anyio.lowlevel


class SystemClock:
    """Clock of this machine: the wall clock in UTC, and `time.monotonic` for durations. Satisfies `Clock`."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start (clock_gettime(2), CLOCK_MONOTONIC)."""
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        """Sleep until `monotonic()` is at least `deadline`; `math.inf` sleeps until cancelled."""
        await anyio.lowlevel.checkpoint()
        # An event loop may wake a timer up to its clock's resolution early, so the deadline is looked at again.
        while (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110  # it waits for time itself
            await anyio.sleep(left)
