"""What is in Redis: the keys of the guide, nothing without a time to live, and no way from a name to another key."""

from __future__ import annotations

import json

import anyio
import anyio.lowlevel
import pytest

from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ExecutionNotFound, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.ports.store import ListQuery, Quota, Scope
from sandbox_core.testing.samples import (
    NODE,
    WIDE,
    cancelled,
    ended,
    exited,
    pending,
    place_of,
    printed,
    requeued,
    retried,
)
from tests.integration.redis.conftest import CLOCK, claimed, opened
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


async def test_the_guide_s_monitoring_commands_work_unchanged(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        execution = await store.create(pending(CLOCK, session_id=SessionId("s:1")))
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        await store.append(claim.lease, [printed(CLOCK, b"one"), printed(CLOCK, b"two")])
        final = ended(claim.execution, CLOCK)
        await store.append(claim.lease, [exited(CLOCK)], final)
    key = f"execution:{execution.id}"
    assert set(redis_server.ask("KEYS", "execution:*")) == {key.encode(), f"{key}:output".encode()}
    assert json.loads(redis_server.ask("GET", key))["execution"]["status"] == "completed"
    events = [json.loads(line) for line in redis_server.ask("LRANGE", f"{key}:output", 0, -1)]
    assert [event["data"] for event in events] == ["one", "two", "exited with code 0"]
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert set(redis_server.ask("SMEMBERS", "session:s:1:executions")) == {execution.id.encode()}
    assert 3590 <= redis_server.ask("TTL", key) <= 3600


async def test_nothing_lives_without_a_time_to_live(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        execution = await store.create(pending(CLOCK, session_id=SessionId("s")), idempotency_key="k")
        await store.reserve(place_of(execution), WIDE, lease_seconds=15)
        _all_expire(redis_server)
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        _all_expire(redis_server)
        await store.append(claim.lease, [printed(CLOCK, b"one")])
        _all_expire(redis_server)
        await store.append(claim.lease, [printed(CLOCK, b"two")], claim.execution)
        _all_expire(redis_server)
        await store.renew([claim.lease], lease_seconds=15)
        await store.ping()
        _all_expire(redis_server)
        await store.append(claim.lease, [exited(CLOCK)], ended(claim.execution, CLOCK))
        await store.load(execution.id)
        _all_expire(redis_server)
        await store.release(place_of(execution))
        key = f"execution:{execution.id}"
        expiry = {redis_server.ask("PEXPIRETIME", name) for name in (key, f"{key}:output", f"meta:{execution.id}")}
        assert len(expiry) == 1


async def test_the_set_of_a_session_outlives_what_ran_in_it_by_a_share_of_its_time(redis_server: RedisServer) -> None:
    name = "session:s:executions"
    async with opened(redis_server) as store:
        execution = await store.create(pending(CLOCK, session_id=SessionId("s")))
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        assert 3590 <= redis_server.ask("TTL", name) <= 3600 * 9 / 8
        redis_server.ask("EXPIRE", name, 60)
        await store.renew([claim.lease], lease_seconds=15)
        assert 3590 <= redis_server.ask("TTL", name) <= 3600 * 9 / 8
        await store.append(claim.lease, [exited(CLOCK)], ended(claim.execution, CLOCK))
        assert set(redis_server.ask("SMEMBERS", name)) == {execution.id.encode()}
        assert 3590 <= redis_server.ask("TTL", name) <= 3600 * 9 / 8


async def test_what_ends_after_the_set_of_its_session_expired_is_in_it_again(redis_server: RedisServer) -> None:
    name = "session:s:executions"
    async with opened(redis_server) as store:
        execution = await store.create(pending(CLOCK, session_id=SessionId("s")))
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        redis_server.ask("DEL", name)
        await store.append(claim.lease, [exited(CLOCK)], ended(claim.execution, CLOCK))
        assert set(redis_server.ask("SMEMBERS", name)) == {execution.id.encode()}
        _all_expire(redis_server)


async def test_what_waits_again_is_noted_for_whoever_queues_it_and_lives_no_longer_than_anything(
    redis_server: RedisServer,
) -> None:
    async with opened(redis_server) as store:
        execution = await store.create(pending(CLOCK, queue_timeout_seconds=60, retry_safe=True))
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        await store.append(claim.lease, [printed(CLOCK, b"one")])
        assert redis_server.ask("ZSCORE", "waiting", execution.id) is None
        again = requeued(claim.execution, CLOCK)
        await store.append(claim.lease, [retried(CLOCK)], again)
        _all_expire(redis_server)
        now = 1000 * int(redis_server.ask("TIME")[0])
        # For a while the queue is left to the one that put it back: should it die first, another finds it.
        assert now < float(redis_server.ask("ZSCORE", "waiting", execution.id)) <= now + 17_000
        assert now + 50_000 < float(redis_server.ask("ZSCORE", "leases", execution.id)) <= now + 62_000
        key = f"execution:{execution.id}"
        names = (key, f"{key}:output", f"meta:{execution.id}")
        assert all(redis_server.ask("TTL", name) <= 3600 for name in names)
        await store.finish_unclaimed(cancelled(again, CLOCK), [exited(CLOCK)])
        for name in ("waiting", "leases"):
            assert redis_server.ask("ZSCORE", name, execution.id) is None


async def test_names_reach_no_keys_but_their_own(redis_server: RedisServer) -> None:
    principals = [Principal(name) for name in ("a", "a:b", "a|b", "*", "a:*:completed")]
    sessions = [SessionId(name) for name in ("b:c", "c", "", "*", "x:executions", "=c")]
    async with opened(redis_server) as store:
        made = {}
        for principal in principals:
            for session in sessions:
                execution = await store.create(pending(CLOCK, principal=principal, session_id=session))
                made[principal, session] = execution
        for (principal, session), execution in made.items():
            assert (await store.list_page(ListQuery(principal, session))).executions == (execution,)
            quota = Quota(100, 100, 1)
            assert await store.reserve(place_of(execution), quota, lease_seconds=15) is None
            again = pending(CLOCK, principal=principal, session_id=session)
            assert await store.reserve(place_of(again), quota, lease_seconds=15) is Scope.SESSION
        one = next(iter(made.values()))
        for name in (f"{one.id}:output", "*", "../x", f"{one.id}\n", one.id.upper(), ""):
            await store.discard(ExecutionId(name))
            for call in (store.load(ExecutionId(name)), store.read(ExecutionId(name))):
                with pytest.raises(ExecutionNotFound):
                    await call
        assert await store.load(one.id) == one


async def test_a_prefix_keeps_two_stores_apart(redis_server: RedisServer) -> None:
    async with opened(redis_server, prefix="one") as one, opened(redis_server, prefix="two") as two:
        execution = await one.create(pending(CLOCK))
        with pytest.raises(ExecutionNotFound):
            await two.load(execution.id)
    assert all(key.startswith(b"one:") for key in redis_server.ask("KEYS", "*"))


@pytest.mark.parametrize("which", ["execution:{}", "execution:{}:output", "meta:{}"])
@pytest.mark.parametrize("poison", ["type", "gone", "garbage"])
async def test_a_poisoned_key_is_corrupt_data_and_names_no_content(
    redis_server: RedisServer, which: str, poison: str
) -> None:
    async with opened(redis_server) as store:
        claim, other = await claimed(store), await claimed(store)
        await store.append(claim.lease, [printed(CLOCK, b"s3cret output")])
        key = which.format(claim.lease.execution_id)
        kind = redis_server.ask("TYPE", key)
        if poison != "garbage":
            redis_server.ask("DEL", key)
        if poison == "type":
            redis_server.ask("ZADD", key, 1, "s3cret")
        elif poison == "garbage":
            garble = {b"string": ("SET", key, "s3cret"), b"list": ("LSET", key, 0, "s3cret")}
            redis_server.ask(*garble.get(kind, ("HSET", key, "seq", "s3cret")))
        with pytest.raises(StoredDataCorrupt) as caught:
            await store.read(claim.lease.execution_id)
        assert claim.lease.execution_id in str(caught.value)
        assert "s3cret" not in str(caught.value)
        await store.append(other.lease, [printed(CLOCK, b"fine")])
        assert (await store.read(other.lease.execution_id)).last_seq == 1


@pytest.mark.parametrize("gone", [["execution:{}"], ["meta:{}"], ["execution:{}", "meta:{}"], ["execution:{}:output"]])
async def test_what_lost_its_keys_stands_before_no_other_that_has_lapsed(
    redis_server: RedisServer, gone: list[str]
) -> None:
    async with opened(redis_server) as store:
        torn = await claimed(store, lease_seconds=0.001)
        await store.append(torn.lease, [printed(CLOCK, b"x")])
        other = await claimed(store, lease_seconds=0.002)
        while len(await store.lapsed()) < 2:
            await anyio.lowlevel.checkpoint()
        redis_server.ask("DEL", *(key.format(torn.lease.execution_id) for key in gone))
        with pytest.raises((ExecutionNotFound, StoredDataCorrupt)):
            await end_lost(store, torn.lease.execution_id)
        with anyio.fail_after(60):
            while await store.lapsed() != [other.lease.execution_id]:
                await anyio.lowlevel.checkpoint()
        assert redis_server.ask("ZRANGE", "leases", 0, -1) == [other.lease.execution_id.encode()]


async def end_lost(store: RedisStateStore, execution_id: ExecutionId) -> None:
    taken = await store.seize(execution_id, NODE, lease_seconds=0.001)
    await store.append(taken.lease, [exited(CLOCK)], ended(taken.execution, CLOCK))


def _all_expire(server: RedisServer) -> None:
    living = {key: server.ask("PTTL", key) for key in server.ask("KEYS", "*")}
    assert living
    assert {key: left for key, left in living.items() if left <= 0} == {}
