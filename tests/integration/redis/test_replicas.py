"""Several replicas, several clocks, one Redis: leases and places hold by Redis's time and survive whoever held them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ClaimRefused, LeaseLost
from sandbox_core.domain.ids import NodeId, SessionId
from sandbox_core.ports.store import Place, Quota, Scope
from sandbox_core.testing.samples import NODE, OTHER_NODE, ended, exited, pending, place_of, printed
from tests.integration.redis.conftest import ANSWER_SECONDS, CLOCK, PATIENT, claimed, opened
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio
_BOUND_SECONDS = 60


class SkewedClock(SystemClock):
    """A machine whose clock is wrong."""

    def __init__(self, hours: float) -> None:
        self._skew = timedelta(hours=hours)

    def now(self) -> datetime:
        return super().now() + self._skew

    def monotonic(self) -> float:
        return super().monotonic() + self._skew.total_seconds()


@asynccontextmanager
async def skewed(server: RedisServer, hours: float) -> AsyncIterator[RedisStateStore]:
    options = RedisOptions(url=SecretStr(server.url), timeout_seconds=ANSWER_SECONDS)
    async with RedisConnection(options) as redis, RedisStateStore(redis, SkewedClock(hours)) as store:
        yield store


@pytest.mark.parametrize("hours", [-1.0, 1.0])
async def test_clocks_that_disagree_cost_no_lease(redis_server: RedisServer, hours: float) -> None:
    async with opened(redis_server) as owner, skewed(redis_server, hours) as other:
        claim = await claimed(owner, lease_seconds=30)
        assert list(await other.lapsed()) == []
        with pytest.raises(ClaimRefused, match="still holds"):
            await other.seize(claim.lease.execution_id, OTHER_NODE, lease_seconds=30)
        await owner.renew([claim.lease], lease_seconds=0.05)
        with anyio.fail_after(_BOUND_SECONDS):
            while not await other.lapsed():
                await anyio.lowlevel.checkpoint()
        taken = await other.seize(claim.lease.execution_id, OTHER_NODE, lease_seconds=30)
        with pytest.raises(LeaseLost):
            await owner.append(claim.lease, [printed(CLOCK, b"late")])
        final = ended(taken.execution, CLOCK)
        await other.append(taken.lease, [exited(CLOCK)], final)
        assert (await owner.read(final.id)).execution == final


async def test_a_quota_of_a_session_holds_across_replicas_and_survives_a_crash(redis_server: RedisServer) -> None:
    quota, session = Quota(100, 100, 5), SessionId("s")
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(redis_server)) for _ in range(3)]
        answers: list[Scope | None] = []
        held: list[Place] = []

        async def reserve(store: RedisStateStore, node: str) -> None:
            execution = pending(CLOCK, session_id=session)
            place = Place(execution.id, NodeId(node), execution.principal, session)
            answers.append(await store.reserve(place, quota, lease_seconds=600))
            if answers[-1] is None:
                held.append(place)

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(reserve, stores[number % 3], f"node-{number % 3}")
        assert answers.count(None) == 5
        assert answers.count(Scope.SESSION) == 25
        # Nobody releases or renews any more: every holder has crashed.
        for place in held:
            assert await stores[0].reserve(place, quota, lease_seconds=0.05) is None
        execution = pending(CLOCK, session_id=session)
        with anyio.fail_after(_BOUND_SECONDS):
            while await stores[0].reserve(place_of(execution, NODE), quota, lease_seconds=15) is not None:
                await anyio.lowlevel.checkpoint()


async def test_a_place_that_one_replica_gives_back_is_taken_by_another_s_queue(redis_server: RedisServer) -> None:
    settings = Settings.model_validate(
        {"redis_url": redis_server.url, "runner": "local", "max_per_session": 1, "lease_seconds": 3600, **PATIENT}
    )
    async with open_sandbox(settings) as one, open_sandbox(settings) as two:
        blocker = await one.submit("read line", interactive=True, session_id="s")
        await one.service.wait(one.principal, blocker, after=0)
        waiting = await two.submit("echo ran", session_id="s")
        with anyio.move_on_after(0.2) as early:
            await two.wait(waiting)
        assert early.cancelled_caught
        await two.send_stdin(blocker, b"go\n")
        # Nobody looks by himself within this time.
        with anyio.fail_after(_BOUND_SECONDS):
            assert (await one.wait(waiting)).stdout == b"ran\n"


async def test_any_replica_reads_feeds_cancels_and_lists_what_another_runs(redis_server: RedisServer) -> None:
    settings = Settings.model_validate({"redis_url": redis_server.url, "runner": "local", **PATIENT})
    with anyio.fail_after(_BOUND_SECONDS):
        async with open_sandbox(settings) as one, open_sandbox(settings) as two:
            fed = await one.submit("read line; echo got $line", interactive=True, session_id="s")
            slept = await one.submit("echo begun; sleep 60", session_id="s")
            await two.service.wait(two.principal, slept, after=1)
            await two.send_stdin(fed, "words\n")
            assert (await two.wait(fed)).stdout == b"got words\n"
            assert await two.cancel(slept)
            result = await two.wait(slept)
            assert (result.status, result.stdout) == ("cancelled", b"begun\n")
            page = await two.list(session_id="s")
            assert {execution.id for execution in page.executions} == {fed, slept}
            assert [event async for event in one.follow(fed)] == [event async for event in two.follow(fed)]


async def test_who_creates_for_others_hears_of_them_from_the_beginning(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever hoped that it runs here would hear nothing for this long.
    monkeypatch.setattr("sandbox_adapters.stores.redis._HERE_SECONDS", 1000)
    async with (
        RedisConnection(RedisOptions(url=SecretStr(redis_server.url), timeout_seconds=ANSWER_SECONDS)) as redis,
        RedisStateStore(redis, CLOCK, starts_here=False) as front,
        opened(redis_server) as back,
    ):
        execution = await front.create(pending(CLOCK))
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: front.wait(execution.id, after=0, until_terminal=True))
                claim = await back.claim(execution.id, NODE, lease_seconds=30)
                await back.append(claim.lease, [exited(CLOCK)], ended(claim.execution, CLOCK))
