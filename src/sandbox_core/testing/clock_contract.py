"""The contract suite of Clock.

To test a clock of your own, subclass and give it two fixtures:

    class TestMyClock(ClockContract):
        @pytest.fixture
        def clock(self): return MyClock()

        @pytest.fixture
        def pass_time(self, clock): return clock.advance     # or anyio.sleep for a clock that runs by itself

The tests are async and marked `anyio`; the `anyio_backend` fixture chooses asyncio or trio.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from sandbox_core.ports.clock import Clock

PassTime = Callable[[float], Awaitable[object]]
"""Lets so many of the clock's seconds pass."""

_STEP_SECONDS = 0.02
_BOUND_SECONDS = 60


@pytest.mark.anyio
class ClockContract:
    """Everything that a Clock promises. See the module's text for how to use it."""

    async def test_now_is_aware_and_in_utc(self, clock: Clock) -> None:
        assert clock.now().utcoffset() == timedelta(0)

    async def test_both_times_go_on_when_time_passes(self, clock: Clock, pass_time: PassTime) -> None:
        now, monotonic = clock.now(), clock.monotonic()
        await pass_time(_STEP_SECONDS)
        assert clock.monotonic() > monotonic
        assert clock.now() > now

    async def test_monotonic_never_goes_back(self, clock: Clock) -> None:
        times = [clock.monotonic() for _ in range(1000)]
        assert times == sorted(times)

    @pytest.mark.parametrize("ago", [0.0, 0.5, math.inf])
    async def test_a_deadline_that_has_passed_returns_at_once(self, clock: Clock, ago: float) -> None:
        with anyio.fail_after(_BOUND_SECONDS):
            await clock.sleep_until(clock.monotonic() - ago)

    async def test_a_sleeper_wakes_at_or_after_its_deadline(self, clock: Clock, pass_time: PassTime) -> None:
        deadlines = [clock.monotonic() + _STEP_SECONDS * count for count in (3, 1, 2)]
        woken: list[tuple[float, float]] = []

        async def sleep(deadline: float) -> None:
            await clock.sleep_until(deadline)
            woken.append((deadline, clock.monotonic()))

        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                for deadline in deadlines:
                    tasks.start_soon(sleep, deadline)
                await pass_time(_STEP_SECONDS * 4)
        # Two that are late by the same moment wake in any order.
        assert sorted(deadline for deadline, _ in woken) == sorted(deadlines)
        assert all(at >= deadline for deadline, at in woken)

    @pytest.mark.parametrize("seconds", [3600.0, math.inf])
    async def test_a_sleep_is_cancellable(self, clock: Clock, seconds: float) -> None:
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(clock.sleep_until, clock.monotonic() + seconds)
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
