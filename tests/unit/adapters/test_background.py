"""Work beside the calls ends with its context; rounds come by the clock, through outages, and tell of each once."""

from __future__ import annotations

import logging

import anyio
import pytest

from sandbox_adapters.background import Background, rounds
from sandbox_core.domain.errors import ServerFull, StoreUnavailable
from sandbox_core.testing.fake_clock import FakeClock

pytestmark = pytest.mark.anyio

_log = logging.getLogger("tests.background")


class Adapter(Background):
    """Notes what its two coroutines come to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(self._first, self._second)
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.both = anyio.Event()
        self._error = error

    async def _first(self) -> None:
        await self._run("first")

    async def _second(self) -> None:
        await self._run("second")
        if self._error is not None:
            raise self._error

    async def _run(self, name: str) -> None:
        self.begun.append(name)
        if len(self.begun) == 2:
            self.both.set()
        try:
            if self._error is None:
                await anyio.sleep_forever()
        finally:
            self.ended.append(name)


async def test_it_works_while_the_context_lasts_and_not_after() -> None:
    with anyio.fail_after(30):
        async with Adapter() as adapter:
            await adapter.both.wait()
            assert adapter.ended == []
    assert sorted(adapter.ended) == ["first", "second"]


async def test_an_error_of_the_body_passes_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with Adapter():
            raise KeyError("mine")


async def test_work_that_fails_ends_the_body_and_is_told() -> None:
    with pytest.raises(ExceptionGroup) as told, anyio.fail_after(30):
        async with Adapter(error=LookupError("broken")):
            await anyio.sleep_forever()
    assert [str(error) for error in told.value.exceptions] == ["broken"]


async def test_leaving_what_was_never_entered_is_no_error() -> None:
    await Adapter().__aexit__(None, None, None)


async def test_rounds_come_by_the_clock_and_an_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, seen = FakeClock(), list[float]()
    away = {10.0, 20.0, 40.0}

    async def work() -> None:
        seen.append(clock.monotonic())
        if clock.monotonic() in away:
            raise StoreUnavailable("gone")

    with caplog.at_level(logging.WARNING, logger=_log.name):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: rounds(work, clock=clock, every_seconds=10, log=_log, complaint="nothing was looked at")
            )
            await clock.wait_sleepers(1)
            assert seen == [0.0]
            await clock.advance(50)
            tasks.cancel_scope.cancel()
    assert seen == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert caplog.messages == [f"nothing was looked at: {StoreUnavailable('gone')}"] * 2


async def test_a_long_round_delays_the_next_and_none_is_made_up_for() -> None:
    clock, seen = FakeClock(), list[float]()

    async def work() -> None:
        seen.append(clock.monotonic())
        await clock.sleep_until(clock.monotonic() + 25)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: rounds(work, clock=clock, every_seconds=10, log=_log, complaint="never"))
        await clock.wait_sleepers(1)
        await clock.advance(80)
        tasks.cancel_scope.cancel()
    assert seen == [0.0, 35.0, 70.0]


async def test_an_error_that_is_not_tolerated_ends_the_rounds() -> None:
    async def work() -> None:
        raise ServerFull("no room", 1)

    with pytest.raises(ServerFull):
        await rounds(work, clock=FakeClock(), every_seconds=1, log=_log, complaint="never")
