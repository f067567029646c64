"""A claim while the store is away: it may have been made, so it is asked for again, and given up only after a while."""

from __future__ import annotations

import anyio
import pytest

from sandbox_core.application.supervisor import CLAIM_SECONDS
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim
from sandbox_core.testing.queue_harness import item
from sandbox_core.testing.scripted_runner import Script

from .conftest import House, OpenHouse

pytestmark = pytest.mark.anyio

DONE = Script(stdout=b"done\n")


class Away:
    """Claims of a store that does not answer while `is_away`."""

    def __init__(self, home: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.is_away = True
        self._claim = home.store.claim
        monkeypatch.setattr(home.store, "claim", self.claim)

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable("for the test")
        return await self._claim(execution_id, node, lease_seconds=lease_seconds)


async def test_it_is_asked_for_until_the_store_is_back(house: OpenHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house({"run": DONE}) as home:
        away = Away(home, monkeypatch)
        execution_id = await home.submit("run")
        for _ in range(5):
            await home.clock.advance(2)
        assert away.asked > 3
        away.is_away = False
        await home.clock.advance(2)
        assert (await home.ended(execution_id)).status is ExecutionStatus.COMPLETED


async def test_it_is_given_back_when_the_store_stays_away(house: OpenHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house({"run": DONE}) as home:
        away = Away(home, monkeypatch)
        given_back = anyio.Event()
        give_back = home.queue.give_back

        async def note(delivery: object) -> None:
            given_back.set()
            away.is_away = False
            await give_back(delivery)  # type: ignore[arg-type]  # what the supervisor passes

        monkeypatch.setattr(home.queue, "give_back", note)
        execution_id = await home.submit("run")
        for _ in range(round(CLAIM_SECONDS) - 1):
            await home.clock.advance(1)
        assert not given_back.is_set()
        for _ in range(3):
            await home.clock.advance(1)
        assert given_back.is_set()
        assert (await home.ended(execution_id)).status is ExecutionStatus.COMPLETED


async def test_what_is_not_in_the_state_is_said_as_somebody_else_may_wait_for_it(
    house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with house({"run": DONE}) as home:
        await home.queue.put(item())
        assert (await home.ended(await home.submit("run"))).status is ExecutionStatus.COMPLETED
    assert [record.levelname for record in caplog.records if "have another state" in record.message] == ["WARNING"]
