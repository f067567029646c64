"""Availability: what health checks are told, and what an outage leaves in the log."""

from __future__ import annotations

import logging

import anyio
import pytest

from sandbox_adapters import availability
from sandbox_adapters.availability import Availability
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.testing.queue_harness import item

pytestmark = pytest.mark.anyio


class Store(MemoryStateStore):
    """Answers, fails or says nothing, as it is told."""

    behaviour = "answers"

    async def ping(self) -> None:
        if self.behaviour == "fails":
            raise StoreUnavailable("away")
        if self.behaviour == "is silent":
            await anyio.sleep_forever()


@pytest.mark.parametrize(("behaviour", "said"), [("fails", "away"), ("is silent", "no answer within 0.01 s")])
async def test_an_outage_is_logged_when_it_begins_and_when_it_is_over(
    behaviour: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sandbox_adapters.sandbox")
    monkeypatch.setattr(availability, "TIMEOUT_SECONDS", 0.01)
    store, queue = Store(), LocalQueue(max_depth=5)
    asked = Availability(store, queue)
    for _ in range(2):
        store.behaviour = behaviour
        assert [await asked.depth() for _ in range(3)] == [None] * 3
        assert [(record.levelname, said in record.getMessage()) for record in caplog.records] == [("WARNING", True)]
        store.behaviour = "answers"
        monkeypatch.setattr(availability, "TIMEOUT_SECONDS", 30)
        await queue.put(item())
        assert await asked.depth() == await asked.depth() == await queue.depth()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        monkeypatch.setattr(availability, "TIMEOUT_SECONDS", 0.01)
        caplog.clear()
