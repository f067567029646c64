"""The state machine holds MemoryStateStore to its model, and notices planted bugs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.domain.events import EventDraft
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.store import Lease, LogPage, Place, Quota, Scope
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.store_harness import StoreHarness
from sandbox_core.testing.store_machine import StoreMachine

from .memory_harness import MemoryHarness

_CHECKED = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# Hypothesis also draws constants of the modules that happen to be loaded, so what it tries depends on which tests run
# beside this one. Each planted bug shows in one example of 50 or more often: the bound is far from where it is found.
_HUNTING = settings(
    max_examples=2000,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def machine_of(store_type: type[MemoryStateStore], memory_per_log_bytes: int = 1000) -> type[StoreMachine]:
    """Return the machine that drives this store."""

    class Machine(StoreMachine):
        @asynccontextmanager
        async def open_harness(self) -> AsyncIterator[StoreHarness]:
            clock = FakeClock()
            async with store_type(clock, memory_per_log_bytes=memory_per_log_bytes) as store:
                yield MemoryHarness(store, clock)

    return Machine


@pytest.mark.parametrize("memory_per_log_bytes", [0, 1000, 1 << 20])
def test_the_store_answers_as_the_model_does(memory_per_log_bytes: int) -> None:
    run_state_machine_as_test(machine_of(MemoryStateStore, memory_per_log_bytes), settings=_CHECKED)


class ForgetsTokens(MemoryStateStore):
    """Planted bug: any lease may write."""

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        record = self._records.get(lease.execution_id)
        token = lease.token if record is None else record.token
        return await super().append(Lease(lease.execution_id, lease.node, token, lease.expires_at), drafts, execution)


class ReadsOneTooFew(MemoryStateStore):
    """Planted bug: a page that starts in the middle skips an event."""

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        skipped = after + 1 if after > 1 else after
        return await super().read(execution_id, after=skipped, max_events=max_events, max_bytes=max_bytes)


class LeaksPlaces(MemoryStateStore):
    """Planted bug: a released place still counts."""

    async def release(self, place: Place) -> None:
        return None


class KeepsForEver(MemoryStateStore):
    """Planted bug: nothing expires."""

    def _expire(self) -> None:
        return None


class OverbooksSessions(MemoryStateStore):
    """Planted bug: the quota of sessions is not looked at."""

    async def reserve(self, place: Place, quota: Quota, *, lease_seconds: float) -> Scope | None:
        return await super().reserve(
            place, Quota(quota.per_node, quota.per_principal, 1 << 30), lease_seconds=lease_seconds
        )


@pytest.mark.parametrize("broken", [ForgetsTokens, ReadsOneTooFew, LeaksPlaces, KeepsForEver, OverbooksSessions])
def test_a_planted_bug_is_found(broken: type[MemoryStateStore]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_of(broken), settings=_HUNTING)
