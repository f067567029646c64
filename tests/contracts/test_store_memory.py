"""MemoryStateStore keeps the StateStore contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.store_contract import StateStoreContract
from sandbox_core.testing.store_harness import StoreHarness

from .memory_harness import MemoryHarness


class TestMemoryStateStore(StateStoreContract):
    """With the logs in memory, as far as they fit."""

    @pytest.fixture
    async def harness(self, anyio_backend: str) -> AsyncIterator[StoreHarness]:
        clock = FakeClock()
        async with MemoryStateStore(clock) as store:
            yield MemoryHarness(store, clock)


class TestMemoryStateStoreOnDisk(StateStoreContract):
    """With every line on disk from the first."""

    @pytest.fixture
    async def harness(self, anyio_backend: str) -> AsyncIterator[StoreHarness]:
        clock = FakeClock()
        async with MemoryStateStore(clock, memory_per_log_bytes=0) as store:
            yield MemoryHarness(store, clock)
