"""StoreHarness: a store under test, with its time and a way to see and change what it has stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.store import StateStore


@dataclass(frozen=True, slots=True)
class RawExecution:
    """What a store really keeps of one execution: its document, and its event lines in order."""

    document: bytes
    lines: tuple[bytes, ...]


class StoreHarness(Protocol):
    """What the contract suite and the state machine need of a store. One harness holds one empty store.

    `raw_read` and `raw_write` go behind the adapter's back (for example with a plain Redis client), so that an error
    which encoding and decoding share cannot hide.
    """

    @property
    def store(self) -> StateStore:
        """The store under test."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock that the store goes by."""
        ...

    @property
    def ttl_seconds(self) -> float:
        """How long the store keeps an execution after its last access."""
        ...

    async def advance(self, seconds: float) -> None:
        """Let time pass, for the clock and for whatever expires by itself."""
        ...

    async def raw_read(self, execution_id: ExecutionId) -> RawExecution:
        """Return the stored bytes."""
        ...

    async def raw_write(
        self, execution_id: ExecutionId, *, document: bytes | None = None, lines: Mapping[int, bytes] | None = None
    ) -> None:
        """Replace the stored document, and stored lines by event number; what is not given stays."""
        ...
