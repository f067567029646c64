"""The state machine holds MemoryStateStore to its model, and notices planted bugs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.testing.fake_clock import FakeClock

from .memory_harness import MemoryHarness
from .planted_bugs import ANYWHERE, OpenHarness, PlantedBug, check, find


class KeepsForEver(MemoryStateStore):
    """Planted bug: nothing expires."""

    def _expire(self) -> None:
        return None


def opening(memory_per_log_bytes: int = 1000, store_type: type[MemoryStateStore] = MemoryStateStore) -> OpenHarness:
    @asynccontextmanager
    async def open_harness() -> AsyncIterator[MemoryHarness]:
        clock = FakeClock()
        async with store_type(clock, memory_per_log_bytes=memory_per_log_bytes) as store:
            yield MemoryHarness(store, clock)

    return open_harness


@pytest.mark.parametrize("memory_per_log_bytes", [0, 1000, 1 << 20])
def test_the_store_answers_as_the_model_does(memory_per_log_bytes: int) -> None:
    check(opening(memory_per_log_bytes), max_examples=100)


@pytest.mark.parametrize("bug", ANYWHERE)
def test_a_planted_bug_is_found(bug: type[PlantedBug]) -> None:
    find(opening(), bug)


def test_a_store_that_keeps_for_ever_is_found() -> None:
    find(opening(store_type=KeepsForEver))
