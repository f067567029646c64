"""AdoptingQueue acknowledges beside what was claimed."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self, cast

import anyio
import anyio.lowlevel
import pytest

from sandbox_adapters.queues.adopting import AdoptingQueue
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.redis_connection import RedisConnection
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.ports.queue import Delivery, ExecutionQueue
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.queue_harness import BOUND_SECONDS, everyone, item

pytestmark = pytest.mark.anyio


def satisfies_the_port(queue: AdoptingQueue) -> ExecutionQueue:
    """Checked by mypy."""
    return queue


class _Engine(LocalQueue):
    """Acknowledges when a test lets it, or breaks."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.may_answer, self.acknowledged, self._error = anyio.Event(), list[Delivery](), error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def done(self, delivery: Delivery) -> None:
        await self.may_answer.wait()
        if self._error is not None:
            raise self._error
        self.acknowledged.append(delivery)


class _NothingToAdopt:
    namespace = ""

    async def run(self, *_: Any) -> list[bytes]:
        return []


def adopting(engine: Any) -> AdoptingQueue:
    clock = FakeClock()
    state = cast("RedisConnection", _NothingToAdopt())
    return AdoptingQueue(queue=engine, store=MemoryStateStore(clock), state=state, clock=clock, lease_seconds=9)


async def test_an_engine_that_is_slow_to_acknowledge_holds_nothing_up() -> None:
    engine = _Engine()
    async with adopting(engine) as queue:
        await queue.put(item())
        with anyio.fail_after(BOUND_SECONDS):
            delivery = await queue.take(everyone)
            await queue.done(delivery)
            assert engine.acknowledged == []
            engine.may_answer.set()
            while not engine.acknowledged:
                await anyio.lowlevel.checkpoint()
    assert engine.acknowledged == [delivery]


async def test_an_acknowledgement_that_breaks_is_told_and_breaks_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    engine = _Engine(RuntimeError("broken"))
    engine.may_answer.set()
    async with adopting(engine) as queue:
        for _ in range(2):
            await queue.put(item())
            with anyio.fail_after(BOUND_SECONDS):
                await queue.done(await queue.take(everyone))
        with caplog.at_level(logging.ERROR), anyio.fail_after(BOUND_SECONDS):
            while len(caplog.records) < 2:
                await anyio.lowlevel.checkpoint()
    assert "in vain" in caplog.text


async def test_one_that_is_on_its_way_at_the_end_is_given_up() -> None:
    engine = _Engine()
    with anyio.fail_after(BOUND_SECONDS):
        async with adopting(engine) as queue:
            await queue.put(item())
            await queue.done(await queue.take(everyone))
    assert engine.acknowledged == []
