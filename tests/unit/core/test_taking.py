"""A queue that is away: the supervisor goes on asking, and says so once for each outage."""

from __future__ import annotations

import logging

import pytest

from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.queue import Admit, Delivery
from sandbox_core.testing.scripted_runner import Script

from .conftest import House, OpenHouse

pytestmark = pytest.mark.anyio


class Away:
    """A queue whose `take` does not answer while `is_away`."""

    def __init__(self, home: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        self.is_away = False
        self._take = home.queue.take
        monkeypatch.setattr(home.queue, "take", self.take)

    async def take(self, admit: Admit, offers: frozenset[str] = frozenset()) -> Delivery:
        if self.is_away:
            self.refused += 1
            raise StoreUnavailable("for the test")
        return await self._take(admit, offers)


async def test_it_is_asked_again_and_each_outage_is_told_once(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with house({"run": Script(stdout=b"done\n")}) as home:
        away = Away(home, monkeypatch)
        assert (await home.ended(await home.submit("run"))).status is ExecutionStatus.COMPLETED
        for outage in (1, 2):
            away.is_away = True
            # What was being taken when the queue went away is the last that is handed out.
            last = await home.submit("run")
            assert (await home.ended(last)).status is ExecutionStatus.COMPLETED
            before = away.refused
            for _ in range(4):
                await home.clock.advance(2)
            assert away.refused >= before + 3
            away.is_away = False
            await home.clock.advance(2)
            assert (await home.ended(await home.submit("run"))).status is ExecutionStatus.COMPLETED
            told = [record for record in caplog.records if record.getMessage().startswith("cannot take work")]
            assert len(told) == outage
            assert told[-1].levelno == logging.WARNING
