"""The state machine holds RedisStateStore to its model, against a real Redis, and notices planted bugs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.domain.events import EventDraft
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.store import Lease, LogPage, Place
from sandbox_core.testing.store_harness import StoreHarness
from sandbox_core.testing.store_machine import StoreMachine
from tests.redis_server import RedisServer

from .redis_harness import redis_harness

_CHECKED = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
_HUNTING = settings(
    max_examples=1000,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def machine_of(server: RedisServer, store_type: type[RedisStateStore] = RedisStateStore) -> type[StoreMachine]:
    """Return the machine that drives this store."""

    class Machine(StoreMachine):
        @asynccontextmanager
        async def open_harness(self) -> AsyncIterator[StoreHarness]:
            async with redis_harness(server, store_type) as harness:
                yield harness

    return Machine


def test_the_store_answers_as_the_model_does(redis_server: RedisServer) -> None:
    run_state_machine_as_test(machine_of(redis_server), settings=_CHECKED)


class ForgetsTokens(RedisStateStore):
    """Planted bug: any lease may write."""

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        raw = await self._calls.redis.command("HGET", f"meta:{lease.execution_id}", "tok")
        token = lease.token if raw is None else int(raw)
        return await super().append(Lease(lease.execution_id, lease.node, token, lease.expires_at), drafts, execution)


class ReadsOneTooFew(RedisStateStore):
    """Planted bug: a page that starts in the middle skips an event."""

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        skipped = after + 1 if after > 1 else after
        return await super().read(execution_id, after=skipped, max_events=max_events, max_bytes=max_bytes)


class LeaksPlaces(RedisStateStore):
    """Planted bug: a released place still counts."""

    async def release(self, place: Place) -> None:
        return None


class DropsLogs(RedisStateStore):
    """Planted bug: an access does not keep the log."""

    async def load(self, execution_id: ExecutionId) -> Execution:
        execution = await super().load(execution_id)
        await self._calls.redis.command("PEXPIRE", f"execution:{execution_id}:output", 1000)
        return execution


@pytest.mark.parametrize("broken", [ForgetsTokens, ReadsOneTooFew, LeaksPlaces, DropsLogs])
def test_a_planted_bug_is_found(redis_server: RedisServer, broken: type[RedisStateStore]) -> None:
    with pytest.raises((AssertionError, StoredDataCorrupt)):
        run_state_machine_as_test(machine_of(redis_server, broken), settings=_HUNTING)
