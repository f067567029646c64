"""SystemClock and FakeClock keep the Clock contract; FakeClock does what its users rely on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest

from sandbox_adapters.clock import SystemClock
from sandbox_core.ports.clock import Clock
from sandbox_core.testing.clock_contract import ClockContract, PassTime
from sandbox_core.testing.fake_clock import FakeClock


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return SystemClock()

    @pytest.fixture
    def pass_time(self) -> PassTime:
        return anyio.sleep


class TestFakeClock(ClockContract):
    @pytest.fixture
    def clock(self, fake_clock: FakeClock) -> Clock:
        return fake_clock

    @pytest.fixture
    def pass_time(self, fake_clock: FakeClock) -> PassTime:
        return fake_clock.advance


@pytest.mark.anyio
class TestAdvancing:
    async def test_time_stands_still_by_itself(self, fake_clock: FakeClock) -> None:
        assert (fake_clock.now(), fake_clock.monotonic()) == (datetime(2026, 1, 1, tzinfo=UTC), 0.0)
        await fake_clock.settle()
        assert fake_clock.monotonic() == 0.0

    async def test_every_sleeper_wakes_exactly_at_its_deadline(self, fake_clock: FakeClock) -> None:
        woken: list[tuple[float, datetime]] = []

        async def sleep(deadline: float) -> None:
            await fake_clock.sleep_until(deadline)
            woken.append((fake_clock.monotonic(), fake_clock.now()))

        start = fake_clock.now()
        async with anyio.create_task_group() as tasks:
            for deadline in (3.0, 1.0, 2.0, 2.0):
                tasks.start_soon(sleep, deadline)
            await fake_clock.wait_sleepers(4)
            await fake_clock.advance(10)
        assert woken == [(at, start + timedelta(seconds=at)) for at in (1.0, 2.0, 2.0, 3.0)]
        assert fake_clock.monotonic() == 10.0

    async def test_several_may_wait_for_sleepers(self, fake_clock: FakeClock) -> None:
        seen: list[int] = []

        async def wait_for(count: int) -> None:
            await fake_clock.wait_sleepers(count)
            seen.append(count)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for count in (1, 2):
                    tasks.start_soon(wait_for, count)
                for deadline, expected in ((1.0, [1]), (2.0, [1, 2])):
                    await fake_clock.settle()
                    tasks.start_soon(fake_clock.sleep_until, deadline)
                    await fake_clock.settle()
                    assert seen == expected
                await fake_clock.advance(2)

    async def test_a_periodic_sleeper_wakes_each_time_within_one_advance(self, fake_clock: FakeClock) -> None:
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                await fake_clock.sleep_until(fake_clock.monotonic() + 1)
                ticks.append(fake_clock.monotonic())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            await fake_clock.advance(5)
            assert ticks == [1.0, 2.0, 3.0, 4.0, 5.0]
            tasks.cancel_scope.cancel()
        assert fake_clock.sleepers == 0

    async def test_waiting_for_sleepers_returns_when_they_are_there(self, fake_clock: FakeClock) -> None:
        async def start_late() -> None:
            await fake_clock.settle()
            tasks.start_soon(fake_clock.sleep_until, 5.0)
            tasks.start_soon(fake_clock.sleep_until, 6.0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_late)
            await fake_clock.wait_sleepers(2)
            assert fake_clock.sleepers == 2
            await fake_clock.advance(6)
        assert fake_clock.sleepers == 0

    async def test_time_does_not_go_back(self, fake_clock: FakeClock) -> None:
        with pytest.raises(ValueError, match="back"):
            await fake_clock.advance(-1)


def test_a_fake_clock_starts_where_it_is_told_and_needs_a_zone() -> None:
    start = datetime(2030, 5, 1, tzinfo=UTC)
    assert FakeClock(start).now() == start
    with pytest.raises(ValueError, match="aware"):
        FakeClock(datetime(2030, 5, 1))  # noqa: DTZ001  # what is refused
