"""A write whose answer was lost happens once, whoever sends it again: the client, or a run until it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ClaimRefused, LeaseLost, StoreUnavailable
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.testing.samples import NODE, cancelled, ended, exited, pending, printed, requeued, retried
from tests.integration.redis.conftest import CLOCK, claimed, opened
from tests.integration.redis.flaky import FlakyWay, flaky_way
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def way(anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[FlakyWay]:
    async with flaky_way(redis_server) as way:
        yield way


@pytest.fixture
async def store(way: FlakyWay) -> AsyncIterator[RedisStateStore]:
    async with opened(way.url) as store:
        # Every script is known from here on, so that each of the calls below is one command.
        claim = await claimed(store)
        await store.append(claim.lease, [])
        execution = await store.create(pending(CLOCK))
        await store.finish_unclaimed(cancelled(execution, CLOCK), [])
        yield store


async def test_the_client_s_own_repetition_does_nothing_twice(way: FlakyWay, store: RedisStateStore) -> None:
    wanted = pending(CLOCK)
    way.lose_replies(1)
    assert await store.create(wanted) == wanted
    way.lose_replies(1)
    claim = await store.claim(wanted.id, NODE, lease_seconds=15)
    assert claim.execution.status is ExecutionStatus.RUNNING
    way.lose_replies(1)
    assert await store.append(claim.lease, [printed(CLOCK, b"a"), printed(CLOCK, b"b")]) == 2
    way.lose_replies(1)
    final = ended(claim.execution, CLOCK)
    assert await store.append(claim.lease, [exited(CLOCK)], final) == 3
    other = await store.create(pending(CLOCK))
    way.lose_replies(1)
    await store.finish_unclaimed(cancelled(other, CLOCK), [exited(CLOCK)])
    assert way.lost == 5
    assert await texts(store, final) == [b"a", b"b", b"exited with code 0"]
    assert (await store.read(other.id)).last_seq == 1


@pytest.mark.parametrize("ends", [False, True])
async def test_an_append_tried_again_after_an_error_lands_once(
    way: FlakyWay, store: RedisStateStore, ends: bool
) -> None:
    claim = await claimed(store)
    drafts = [printed(CLOCK, b"a"), printed(CLOCK, b"b")]
    final = ended(claim.execution, CLOCK) if ends else None
    for _ in range(3):
        way.lose_replies(2)
        with pytest.raises(StoreUnavailable):
            await store.append(claim.lease, drafts, final)
    assert await store.append(claim.lease, drafts, final) == 2
    if not ends:
        assert await store.append(claim.lease, drafts) == 4
    assert await texts(store, claim.execution) == [b"a", b"b"] * (1 if ends else 2)


async def test_a_claim_tried_again_after_an_error_is_found_if_it_was_made(
    way: FlakyWay, store: RedisStateStore, redis_server: RedisServer
) -> None:
    wanted = await store.create(pending(CLOCK))
    way.lose_replies(2)
    with pytest.raises(StoreUnavailable):
        await store.claim(wanted.id, NODE, lease_seconds=15)
    async with opened(redis_server) as other:
        with pytest.raises(ClaimRefused):
            await other.claim(wanted.id, NodeId("other"), lease_seconds=15)
    claim = await store.claim(wanted.id, NODE, lease_seconds=15)
    assert await store.append(claim.lease, [exited(CLOCK)], ended(claim.execution, CLOCK)) == 1
    with pytest.raises(ClaimRefused):
        await store.claim(wanted.id, NODE, lease_seconds=15)


async def test_a_putting_back_tried_again_after_an_error_lands_once(way: FlakyWay, store: RedisStateStore) -> None:
    execution = await store.create(pending(CLOCK, retry_safe=True, queue_timeout_seconds=60))
    claim = await store.claim(execution.id, NodeId("n"), lease_seconds=15)
    again, drafts = requeued(claim.execution, CLOCK), [retried(CLOCK)]
    way.lose_replies(2)
    with pytest.raises(StoreUnavailable):
        await store.append(claim.lease, drafts, again)
    assert await store.append(claim.lease, drafts, again) == 1
    with pytest.raises(LeaseLost):
        await store.append(claim.lease, drafts, again)
    final = cancelled(again, CLOCK)
    way.lose_replies(1)
    await store.finish_unclaimed(final, [exited(CLOCK)])
    page = await store.read(execution.id)
    assert (page.execution, page.last_seq) == (final, 2)


async def test_a_creation_that_failed_does_not_stay_pending_under_its_key(
    way: FlakyWay, store: RedisStateStore, redis_server: RedisServer
) -> None:
    lost = pending(CLOCK)
    way.lose_replies(2)
    with pytest.raises(StoreUnavailable):
        await store.create(lost, idempotency_key="k")
    with anyio.fail_after(60):
        while redis_server.ask("EXISTS", f"execution:{lost.id}"):
            await anyio.lowlevel.checkpoint()
    again = pending(CLOCK)
    assert await store.create(again, idempotency_key="k") == again


async def test_another_batch_after_a_lost_answer_follows_the_first(way: FlakyWay, store: RedisStateStore) -> None:
    claim = await claimed(store)
    way.lose_replies(2)
    with pytest.raises(StoreUnavailable):
        await store.append(claim.lease, [printed(CLOCK, b"a")])
    assert await store.append(claim.lease, [printed(CLOCK, b"b")]) == 2
    assert await texts(store, claim.execution) == [b"a", b"b"]


async def test_a_repetition_after_the_lease_was_lost_writes_nothing(
    way: FlakyWay, store: RedisStateStore, redis_server: RedisServer
) -> None:
    claim = await claimed(store, lease_seconds=0.001)
    await store.append(claim.lease, [printed(CLOCK, b"a")])
    async with opened(redis_server) as other:
        while not await other.lapsed():
            pass
        taken = await other.seize(claim.lease.execution_id, NodeId("other"), lease_seconds=15)
        with pytest.raises(LeaseLost):
            await store.append(claim.lease, [printed(CLOCK, b"late")])
        final = ended(taken.execution, CLOCK)
        assert await other.append(taken.lease, [exited(CLOCK)], final) == 2
    assert await texts(store, final) == [b"a", b"exited with code 0"]


async def texts(store: RedisStateStore, execution: Execution) -> list[bytes]:
    page = await store.read(execution.id)
    assert [event.seq for event in page.events] == list(range(1, page.last_seq + 1))
    return [event.data for event in page.events]
