"""StateStore contract: what expires, when, and what keeps it."""

from __future__ import annotations

import pytest

from sandbox_core.domain.errors import ExecutionNotFound
from sandbox_core.domain.ids import SessionId
from sandbox_core.ports.store import ListQuery
from sandbox_core.testing.samples import NODE, cancelled, ended, exited, pending
from sandbox_core.testing.store_harness import StoreHarness

_BEFORE_SECONDS = 60
"""Before its end a store that goes by the time of others may lose some of it, as on a machine that stands still."""


@pytest.mark.anyio
class ExpiryContract:
    """An execution and its log go together, a time to live after the last access; running ones stay."""

    async def test_a_pending_execution_expires(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock, session_id=SessionId("s")))
        await harness.advance(harness.ttl_seconds - _BEFORE_SECONDS)
        assert (await harness.store.list_page(ListQuery(execution.principal))).executions == (execution,)
        await harness.advance(_BEFORE_SECONDS)
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(execution.id)
        for session_id in (None, execution.session_id):
            page = await harness.store.list_page(ListQuery(execution.principal, session_id))
            assert page.executions == ()

    async def test_a_finished_execution_expires_with_its_log(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        final = ended(claim.execution, harness.clock)
        await harness.store.append(claim.lease, [exited(harness.clock)], final)
        await harness.advance(harness.ttl_seconds - _BEFORE_SECONDS)
        assert (await harness.store.read(execution.id)).execution == final
        await harness.advance(harness.ttl_seconds)
        for call in (harness.store.read(execution.id), harness.store.read_last(execution.id)):
            with pytest.raises(ExecutionNotFound):
                await call

    @pytest.mark.parametrize("method", ["load", "read", "read_last", "wait"])
    async def test_an_access_gives_a_finished_execution_its_whole_time_again(
        self, harness: StoreHarness, method: str
    ) -> None:
        await harness.store.create(execution := pending(harness.clock))
        await harness.store.finish_unclaimed(cancelled(execution, harness.clock), [exited(harness.clock)])
        for _ in range(3):
            await harness.advance(harness.ttl_seconds - _BEFORE_SECONDS)
            match method:
                case "load":
                    await harness.store.load(execution.id)
                case "read":
                    await harness.store.read(execution.id)
                case "read_last":
                    await harness.store.read_last(execution.id)
                case _:
                    await harness.store.wait(execution.id, after=0)
        await harness.advance(harness.ttl_seconds)
        with pytest.raises(ExecutionNotFound):
            await harness.store.load(execution.id)

    async def test_a_running_execution_never_expires(self, harness: StoreHarness) -> None:
        await harness.store.create(execution := pending(harness.clock))
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        await harness.advance(harness.ttl_seconds * 3)
        assert (await harness.store.list_page(ListQuery(execution.principal))).executions == (claim.execution,)
        final = ended(claim.execution, harness.clock)
        assert await harness.store.append(claim.lease, [exited(harness.clock)], final) == 1
        await harness.advance(harness.ttl_seconds - _BEFORE_SECONDS)
        assert await harness.store.load(execution.id) == final

    async def test_a_key_is_free_again_when_its_execution_has_expired(self, harness: StoreHarness) -> None:
        await harness.store.create(pending(harness.clock), idempotency_key="k")
        await harness.advance(harness.ttl_seconds)
        again = pending(harness.clock)
        assert await harness.store.create(again, idempotency_key="k") == again

    async def test_a_key_used_again_is_an_access(self, harness: StoreHarness) -> None:
        await harness.store.create(first := pending(harness.clock), idempotency_key="k")
        for _ in range(3):
            await harness.advance(harness.ttl_seconds - _BEFORE_SECONDS)
            assert await harness.store.create(pending(harness.clock), idempotency_key="k") == first
