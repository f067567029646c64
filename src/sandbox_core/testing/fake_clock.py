"""FakeClock: time that passes only when a test says so."""

from __future__ import annotations

import heapq
import itertools
from datetime import UTC, datetime, timedelta

import anyio
import anyio.lowlevel

_SETTLE_ROUNDS = 32
"""How many times every ready task runs between two wakes: longer than any chain of tasks that wake each other."""

_WAIT_BOUND_SECONDS = 60.0
"""Real seconds after which `wait_sleepers` gives up, so that a broken test fails instead of hanging."""


class FakeClock:
    """A Clock for tests, under asyncio and trio. Nothing moves until `advance`.

    Args:
        start: the wall-clock time at `monotonic() == 0`; aware.

    Example:
        clock = FakeClock()
        task_group.start_soon(clock.sleep_until, 60.0)
        await clock.wait_sleepers(1)
        await clock.advance(60)
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("start must be an aware datetime")
        self._start = start.astimezone(UTC)
        self._monotonic = 0.0
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._order = itertools.count()
        self._arrived = anyio.Event()

    def now(self) -> datetime:
        """Return `start` plus the time advanced so far."""
        return self._start + timedelta(seconds=self._monotonic)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._monotonic

    @property
    def sleepers(self) -> int:
        """How many tasks sleep on this clock now."""
        return len(self._sleepers)

    async def sleep_until(self, deadline: float) -> None:
        """Sleep until `advance` reaches `deadline`; returns after one checkpoint when that has passed."""
        if deadline <= self._monotonic:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = (deadline, next(self._order), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        self._arrived.set()
        try:
            await sleeper[2].wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` (0 or more) pass: wake sleepers in the order of their deadlines, at their deadlines.

        Every ready task runs between two wakes and before this returns, so a task that sleeps again inside the span is
        woken again.
        """
        if seconds < 0:
            raise ValueError("time does not go back")
        target = self._monotonic + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, event = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, deadline)
            event.set()
            await self.settle()
        self._monotonic = target
        await self.settle()

    async def wait_sleepers(self, count: int) -> None:
        """Return when at least `count` tasks sleep on this clock; TimeoutError after 60 real seconds."""
        with anyio.fail_after(_WAIT_BOUND_SECONDS):
            while len(self._sleepers) < count:
                # Several may wait, so a fresh event may only replace one that is set.
                if self._arrived.is_set():
                    self._arrived = anyio.Event()
                await self._arrived.wait()

    async def settle(self) -> None:
        """Let every ready task run until all of them wait for something, without moving time."""
        for _ in range(_SETTLE_ROUNDS):
            await anyio.lowlevel.checkpoint()
