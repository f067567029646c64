"""What the store costs Redis: few commands, none while nothing happens, and no more for a long log or a long list."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ClaimRefused
from sandbox_core.domain.ids import ExecutionId, SessionId
from sandbox_core.ports.store import ListQuery
from sandbox_core.testing.samples import NODE, WIDE, cancelled, exited, pending, place_of, printed
from sandbox_core.testing.scripted_runner import Script, ScriptedRunner
from tests.integration.redis.conftest import CLOCK, PATIENT, claimed, opened
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
_BOUND_SECONDS = 60
_ROUNDS = 20


async def test_a_short_execution_takes_six_round_trips(redis_server: RedisServer) -> None:
    # Nothing is renewed or swept meanwhile, however long it takes.
    settings = Settings.model_validate({"redis_url": redis_server.url, "lease_seconds": 3600, **PATIENT})
    async with open_sandbox(settings, runner=ScriptedRunner({"true": Script()}, clock=CLOCK)) as sandbox:
        await sandbox.run("true")
        before = redis_server.commands()
        for _ in range(_ROUNDS):
            await sandbox.run("true", session_id="s")
        used = redis_server.commands() - before
    # create, reserve, claim and release; the appends are two, or more on a slow machine.
    assert used["evalsha"] - used["rpush"] <= 4 * _ROUNDS + 6
    assert used["rpush"] <= 4 * _ROUNDS
    assert used["eval"] + used["subscribe"] + used["unsubscribe"] <= 4


async def test_a_worker_claims_what_others_created_in_two_round_trips(redis_server: RedisServer) -> None:
    async with opened(redis_server) as front, opened(redis_server, starts_here=False) as worker:
        executions = [await front.create(pending(CLOCK)) for _ in range(_ROUNDS + 1)]
        warm_up = executions.pop()
        await worker.reserve(place_of(warm_up), WIDE, lease_seconds=60)
        await worker.claim(warm_up.id, NODE, lease_seconds=60)
        before = redis_server.commands()
        for execution in executions:
            assert await worker.reserve(place_of(execution), WIDE, lease_seconds=60) is None
            claim = await worker.claim(execution.id, NODE, lease_seconds=60)
            assert claim.execution.command == execution.command
        used = redis_server.commands() - before
        assert used["evalsha"] == 2 * _ROUNDS
        # One that runs already, and one that was cancelled between, are refused as ever.
        again = executions[0]
        assert await worker.reserve(place_of(again), WIDE, lease_seconds=60) is None
        with pytest.raises(ClaimRefused):
            await worker.claim(again.id, NODE, lease_seconds=60)
        late = await front.create(pending(CLOCK))
        await worker.reserve(place_of(late), WIDE, lease_seconds=60)
        await front.finish_unclaimed(cancelled(late, CLOCK), [])
        with pytest.raises(ClaimRefused):
            await worker.claim(late.id, NODE, lease_seconds=60)


async def test_output_costs_far_fewer_round_trips_than_events(redis_server: RedisServer) -> None:
    settings = Settings.model_validate({"redis_url": redis_server.url, "runner": "local", **PATIENT})
    events = pushes = 0
    # A program that is kept from running prints no faster than Redis takes it, and then nothing is put together.
    with anyio.fail_after(_BOUND_SECONDS):
        async with open_sandbox(settings) as sandbox:
            while pushes > events / 2 or not events:
                before = redis_server.commands()
                result = await sandbox.run("head -c 8388608 /dev/zero")
                pushes, events = (redis_server.commands() - before)["rpush"], int(result.last_event_id)
                assert events >= 128


async def test_nothing_is_asked_while_a_waiter_waits(redis_server: RedisServer) -> None:
    async with opened(redis_server) as owner, opened(redis_server) as reader:
        claim = await claimed(owner)
        await owner.append(claim.lease, [])
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_follow, reader, claim.lease.execution_id, _ROUNDS)
                while not any(channel.known for channel in reader._wakes._channels.values()):
                    await anyio.lowlevel.checkpoint()
                before = redis_server.commands()
                for number in range(_ROUNDS):
                    await owner.append(claim.lease, [printed(CLOCK, b"a")])
                    while (known := _known(reader)) is None or known <= number:
                        await anyio.lowlevel.checkpoint()
        used = redis_server.commands() - before
    assert used["evalsha"] == _ROUNDS
    assert used["subscribe"] == 0


async def test_the_end_of_a_long_log_costs_what_that_of_a_short_one_does(redis_server: RedisServer) -> None:
    async with opened(redis_server) as store:
        costs = []
        for length in (100, 50_000):
            claim = await claimed(store)
            for start in range(0, length, 1000):
                lines = range(start, min(start + 1000, length))
                await store.append(claim.lease, [printed(CLOCK, b"line %05d\n" % number) for number in lines])
            costs.append(await _cost_of_the_end(redis_server, store, claim.lease.execution_id, length))
    short, long = costs
    assert long[0] == short[0]
    assert long[1] <= short[1] * 1.1


async def test_a_page_of_a_long_list_is_found_without_a_scan(redis_server: RedisServer) -> None:
    session, count = SessionId("s"), 2000
    async with opened(redis_server) as store:

        async def finished(number: int) -> None:
            for _ in range(number):
                execution = await store.create(pending(CLOCK, session_id=session))
                await store.finish_unclaimed(cancelled(execution, CLOCK), [])

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(finished, count // 20)
        found: list[ExecutionId] = []
        before, position, pages = redis_server.commands(), None, 0
        while True:
            page = await store.list_page(ListQuery(pending(CLOCK).principal, session, frozenset(), 200, position))
            found += [execution.id for execution in page.executions]
            position, pages = page.next_before, pages + 1
            if position is None:
                break
        used = redis_server.commands() - before
    assert len(found) == len(set(found)) == count
    assert found == sorted(found, reverse=True)
    assert used["evalsha"] == pages == count / 200
    assert used["get"] <= count + pages
    assert used["zrevrangebylex"] <= 2 * 6 * pages
    assert used["scan"] + used["keys"] + used["smembers"] == 0


async def test_what_has_expired_leaves_the_indexes_bit_by_bit(own_redis: RedisServer) -> None:
    session = SessionId("s")
    async with opened(own_redis, ttl_seconds=0.4) as store:
        for _ in range(30):
            execution = await store.create(pending(CLOCK, session_id=session), idempotency_key=None)
            await store.finish_unclaimed(cancelled(execution, CLOCK), [exited(CLOCK)])
        with anyio.fail_after(_BOUND_SECONDS):
            while own_redis.ask("KEYS", "execution:*"):
                await anyio.lowlevel.checkpoint()
        # A running one keeps the indexes of its session alive as long as itself.
        async with opened(own_redis) as other:
            for number in range(1, 11):
                before = own_redis.commands()
                last = await other.create(pending(CLOCK, session_id=session))
                used = own_redis.commands() - before
                assert used["zrem"] <= 5 * 15
                assert own_redis.ask("ZCARD", "expiries") <= max(number, 30 - 5 * number + number)
            assert len(own_redis.ask("SMEMBERS", "session:s:executions")) == 10
            assert (await other.list_page(ListQuery(last.principal, session))).executions[0] == last


def _known(store: RedisStateStore) -> int | None:
    for channel in store._wakes._channels.values():
        return None if channel.known is None else channel.known[0]
    return None


async def _follow(store: RedisStateStore, execution_id: ExecutionId, count: int) -> None:
    for number in range(count):
        await store.wait(execution_id, after=number)


async def _cost_of_the_end(
    server: RedisServer, store: RedisStateStore, execution_id: ExecutionId, length: int
) -> tuple[Counter[str], int]:
    await store.load(execution_id)
    before, sent = server.commands(), server.sent_bytes()
    own = server.sent_bytes() - sent
    page = await store.read(execution_id, after=length - 20)
    last = await store.read_last(execution_id, max_bytes=200)
    assert [event.seq for event in page.events] == list(range(length - 19, length + 1))
    assert len(last.events) == 18
    sent_now = server.sent_bytes() - sent - 2 * own
    used = server.commands() - before
    return Counter({name: used[name] for name in ("evalsha", "get", "hmget", "llen", "lrange")}), sent_now
