"""Bugs planted in any StateStore, so that the state machine is seen to find them; and how long it checks and hunts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.domain.events import EventDraft
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim, Lease, LogPage, Place, Quota, Scope, StateStore
from sandbox_core.testing.store_harness import StoreHarness
from sandbox_core.testing.store_machine import StoreMachine

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


class PlantedBug:
    """A store that does as the one given does, but for what a subclass changes."""

    def __init__(self, honest: StateStore) -> None:
        self.honest = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.honest, name)


class ForgetsTokens(PlantedBug):
    """Any lease may write."""

    def __init__(self, honest: StateStore) -> None:
        super().__init__(honest)
        self._tokens: dict[ExecutionId, int] = {}

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        return self._note(await self.honest.claim(execution_id, node, lease_seconds=lease_seconds))

    async def seize(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        return self._note(await self.honest.seize(execution_id, node, lease_seconds=lease_seconds))

    def _note(self, claim: Claim) -> Claim:
        self._tokens[claim.lease.execution_id] = claim.lease.token
        return claim

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        token = self._tokens.get(lease.execution_id, lease.token)
        current = Lease(lease.execution_id, lease.node, token, lease.expires_at)
        return await self.honest.append(current, drafts, execution)


class ReadsOneTooFew(PlantedBug):
    """A page that starts in the middle skips an event."""

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        skipped = after + 1 if after > 1 else after
        return await self.honest.read(execution_id, after=skipped, max_events=max_events, max_bytes=max_bytes)


class LeaksPlaces(PlantedBug):
    """A released place still counts."""

    async def release(self, place: Place) -> None:
        return None


class OverbooksSessions(PlantedBug):
    """The quota of sessions is not looked at."""

    async def reserve(self, place: Place, quota: Quota, *, lease_seconds: float) -> Scope | None:
        unbounded = Quota(quota.per_node, quota.per_principal, 1 << 30)
        return await self.honest.reserve(place, unbounded, lease_seconds=lease_seconds)


class RunsAgainUnsaid(PlantedBug):
    """What is put back to be run again says nothing of it in its log."""

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        if execution is not None and execution.status is ExecutionStatus.PENDING:
            drafts = drafts[:-1]
        return await self.honest.append(lease, drafts, execution)


class Impatient(PlantedBug):
    """What waits is ended as overdue before its time."""

    async def finish_unclaimed(
        self,
        execution: Execution,
        drafts: Sequence[EventDraft],
        *,
        only_overdue: bool = False,  # the bug
    ) -> None:
        await self.honest.finish_unclaimed(execution, drafts)


ANYWHERE: tuple[type[PlantedBug], ...] = (
    ForgetsTokens,
    ReadsOneTooFew,
    LeaksPlaces,
    OverbooksSessions,
    RunsAgainUnsaid,
    Impatient,
)
"""What the machine finds in every store."""

OpenHarness = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a harness whose `store` may be replaced."""


def check(open_harness: OpenHarness, *, max_examples: int) -> None:
    """Hold the store of this harness to the model."""
    run_state_machine_as_test(
        _machine_of(open_harness, None),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def find(open_harness: OpenHarness, bug: type[PlantedBug] | None = None) -> None:
    """Fail unless the machine finds the bug, planted here or in what the harness opens."""
    with pytest.raises((AssertionError, StoredDataCorrupt)):
        run_state_machine_as_test(_machine_of(open_harness, bug), settings=_HUNTING)


def _machine_of(open_harness: OpenHarness, bug: type[PlantedBug] | None) -> type[StoreMachine]:
    class Machine(StoreMachine):
        @asynccontextmanager
        async def open_harness(self) -> AsyncIterator[StoreHarness]:
            async with open_harness() as harness:
                if bug is not None:
                    harness.store = bug(harness.store)
                yield harness

    return Machine
