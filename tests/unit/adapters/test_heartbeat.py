"""Heartbeat: told again and again, at once after a change, through outages of the store, and a bounded goodbye."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from sandbox_adapters import heartbeat
from sandbox_adapters.fleet.record import BackRecord
from sandbox_adapters.fleet.redis import RedisFleet
from sandbox_adapters.heartbeat import Heartbeat, OwnBack
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.domain.ids import NodeId
from sandbox_core.testing.fake_clock import FakeClock

BOUND_SECONDS = 30
NEVER = 3600.0

pytestmark = pytest.mark.anyio


class Told:
    """A fleet that notes what it is told, refuses while it is away, and answers nothing while it hangs."""

    def __init__(self) -> None:
        self.records: list[BackRecord] = []
        self.asked = 0
        self.withdrawn = 0
        self.is_away = False
        self.hangs = False

    async def announce(self, record: BackRecord) -> None:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable("for the test")
        self.records.append(record)

    async def withdraw(self, _: BackRecord) -> None:
        self.withdrawn += 1
        if self.hangs:
            await anyio.sleep_forever()
        if self.is_away:
            raise StoreUnavailable("for the test")

    async def was_asked(self, times: int) -> None:
        with anyio.fail_after(BOUND_SECONDS):
            while self.asked < times:  # noqa: ASYNC110  # it is told to, and tells nobody
                await anyio.sleep(0.005)


class Rig:
    """A back whose load and end are set by the test, and its heartbeat."""

    def __init__(self, every_seconds: float = NEVER) -> None:
        self.back = SimpleNamespace(running=0, capacity=4)
        self.drains = False
        self.told = Told()
        self.own = OwnBack(
            node=NodeId("n"),
            back=cast("Any", self.back),
            is_draining=lambda: self.drains,
            clock=FakeClock(),
            host="h",
            labels=frozenset({"large", "gpu"}),
            queue="redis",
        )
        self.heartbeat = Heartbeat(cast("RedisFleet", self.told), self.own, every_seconds=every_seconds)


async def test_it_tells_again_and_again_how_it_is_then() -> None:
    rig = Rig(every_seconds=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.heartbeat.run)
        await rig.told.was_asked(2)
        rig.back.running = 3
        await rig.told.was_asked(rig.told.asked + 2)
        tasks.cancel_scope.cancel()
    assert (rig.told.records[0].busy, rig.told.records[-1].busy) == (0, 3)
    assert rig.told.records[0].labels == ("gpu", "large")


async def test_that_it_drains_is_told_at_once() -> None:
    rig = Rig()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.heartbeat.run)
        rig.drains = True
        rig.own.changed()
        await rig.told.was_asked(1)
        tasks.cancel_scope.cancel()
    assert [record.draining for record in rig.told.records] == [True]


async def test_an_outage_is_logged_once_and_the_first_beat_after_it_comes_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "_RETRY_SECONDS", 0.01)
    rig = Rig()
    rig.told.is_away = True
    with caplog.at_level(logging.WARNING, "sandbox_adapters.fleet"):
        await rig.heartbeat.beat()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.heartbeat.run)
            await rig.told.was_asked(4)
            rig.told.is_away = False
            await rig.told.was_asked(rig.told.asked + 1)
            tasks.cancel_scope.cancel()
    assert len(rig.told.records) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_goodbye_ends_whether_or_not_the_store_answers(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr(heartbeat, "_GOODBYE_SECONDS", 0.01)
    rig = Rig()
    rig.told.is_away, rig.told.hangs = True, hangs
    with anyio.fail_after(BOUND_SECONDS):
        await rig.heartbeat.end()
    assert rig.told.withdrawn == 1
