"""MemoryHarness: a MemoryStateStore for the contract suite and the state machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.store import StateStore
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.store_harness import RawExecution, StoreHarness


@dataclass
class MemoryHarness:
    """A MemoryStateStore and its clock; looks into its records for the raw bytes."""

    store: MemoryStateStore
    clock: FakeClock
    ttl_seconds: float = 3600

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def raw_read(self, execution_id: ExecutionId) -> RawExecution:
        record = self.store._records[execution_id]
        return RawExecution(record.document, tuple(record.log.forward(1)))

    async def raw_write(
        self, execution_id: ExecutionId, *, document: bytes | None = None, lines: Mapping[int, bytes] | None = None
    ) -> None:
        record = self.store._records[execution_id]
        if document is not None:
            record.document = document
        for seq, line in (lines or {}).items():
            kept = list(record.log.forward(1))
            kept[seq - 1] = line
            record.log.drop()
            record.log.append(kept)


def satisfies_the_port(store: MemoryStateStore, harness: MemoryHarness) -> tuple[StateStore, StoreHarness]:
    """Checked by mypy: the adapter fits the port, the harness its Protocol."""
    return store, harness
