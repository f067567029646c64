"""Cancel of what waits, in each mode: in one process, in replicas, over a queue of workers; and against a give-back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.control.local import LocalControlChannel
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.queues.shared import SharedQueue
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.application.service import ExecutionService, Submission
from sandbox_core.application.supervisor import ExecutionSupervisor
from sandbox_core.domain.command import Command
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, NodeId
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.control import ControlChannel
from sandbox_core.ports.queue import ExecutionQueue, QueueItem
from sandbox_core.ports.store import Quota, StateStore
from sandbox_core.testing.samples import place_of
from sandbox_core.testing.scripted_runner import Script, ScriptedRunner
from tests.integration.workers.dying_worker import LEASE_SECONDS, Parts, entered
from tests.redis_server import RedisServer

BOUND_SECONDS = 60
ROUNDS = 30
ANY = ExecutionPolicy()

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@dataclass
class Mode:
    """Who accepted it, who cancels it, and where it waits."""

    store: StateStore
    queue: ExecutionQueue
    front: ExecutionService
    other: ExecutionService
    control: ControlChannel

    def supervisor(self, runner: ScriptedRunner) -> ExecutionSupervisor:
        return ExecutionSupervisor(
            store=self.store,
            queue=self.queue,
            control=self.control,
            runner=runner,
            clock=SystemClock(),
            node=NodeId("back"),
            quota=Quota(per_node=5, per_principal=5, per_session=5),
        )

    async def submitted(self) -> ExecutionId:
        return (await self.front.submit(LOCAL_PRINCIPAL, Submission(Command(shell="x")))).id


def front_of(store: StateStore, queue: ExecutionQueue, control: ControlChannel) -> ExecutionService:
    return ExecutionService(store=store, queue=queue, control=control, clock=SystemClock(), ceiling=ANY, defaults=ANY)


@pytest.fixture(params=["one process", "replicas", "workers"])
async def mode(request: pytest.FixtureRequest) -> AsyncIterator[Mode]:
    async with AsyncExitStack() as stack:
        if request.param == "one process":
            store, queue, control = MemoryStateStore(), LocalQueue(), LocalControlChannel()
            front = front_of(store, queue, control)
            yield Mode(store, queue, front, front, control)
            return
        redis: RedisServer = request.getfixturevalue("redis_server")
        mine, theirs = Parts(redis.url, "mine"), Parts(redis.url, "theirs")
        await stack.enter_async_context(entered(mine))
        await stack.enter_async_context(entered(theirs))
        queues: list[ExecutionQueue] = [mine.queue, theirs.queue]
        if request.param == "replicas":
            queues = [await stack.enter_async_context(replica(parts)) for parts in (mine, theirs)]
        front = front_of(mine.store, queues[0], mine.control)
        other = front_of(theirs.store, queues[1], theirs.control)
        yield Mode(mine.store, queues[0], front, other, mine.control)


@asynccontextmanager
async def replica(parts: Parts) -> AsyncIterator[ExecutionQueue]:
    async with SharedQueue(
        local=LocalQueue(),
        store=parts.store,
        connection=parts.connection,
        clock=parts.clock,
        lease_seconds=LEASE_SECONDS,
    ) as queue:
        yield queue


async def anything(_: QueueItem) -> bool:
    return True


async def kinds(mode: Mode, execution_id: ExecutionId) -> list[EventKind]:
    return [event.kind for event in (await mode.store.read(execution_id)).events]


async def test_what_was_cancelled_while_it_waited_never_starts(mode: Mode) -> None:
    runner = ScriptedRunner({"x": Script()}, clock=SystemClock())
    cancelled, kept = await mode.submitted(), await mode.submitted()
    assert await mode.other.cancel(LOCAL_PRINCIPAL, cancelled)
    assert not await mode.other.cancel(LOCAL_PRINCIPAL, cancelled)
    await _run_until(mode, runner, kept)
    execution = await mode.front.get(LOCAL_PRINCIPAL, cancelled)
    assert (execution.status, execution.started_at) == (ExecutionStatus.CANCELLED, None)
    assert execution.outcome is not None
    assert execution.outcome.usage.queued_seconds > 0
    assert await kinds(mode, cancelled) == [EventKind.CANCELLED]
    assert [launch.execution_id for launch in runner.launches] == [kept]
    assert await mode.queue.depth() == 0


async def test_what_was_cancelled_while_a_worker_had_it_and_is_given_back_never_starts(mode: Mode) -> None:
    runner = ScriptedRunner({"x": Script()}, clock=SystemClock())
    cancelled = await mode.submitted()
    delivery = await mode.queue.take(anything)
    assert delivery.item.execution_id == cancelled
    assert await mode.other.cancel(LOCAL_PRINCIPAL, cancelled)
    await mode.queue.give_back(delivery)
    kept = await mode.submitted()
    await _run_until(mode, runner, kept)
    assert await kinds(mode, cancelled) == [EventKind.CANCELLED]
    assert [launch.execution_id for launch in runner.launches] == [kept]
    with anyio.fail_after(BOUND_SECONDS):
        while await mode.queue.depth():
            await anyio.lowlevel.checkpoint()
    # Nothing of it is counted any more.
    place = place_of(await mode.store.load(cancelled), NodeId("back"))
    for _ in range(2):
        quota = Quota(per_node=1, per_principal=1, per_session=1)
        assert await mode.store.reserve(place, quota, lease_seconds=1) is None
        await mode.store.release(place)


async def test_a_cancel_a_give_back_and_a_taker_at_once_end_it_once(mode: Mode) -> None:
    runner = ScriptedRunner({"x": Script()}, clock=SystemClock())
    ids = []
    with anyio.fail_after(BOUND_SECONDS):
        for _ in range(ROUNDS):
            execution_id = await mode.submitted()
            ids.append(execution_id)
            delivery = await mode.queue.take(anything)
            supervisor = mode.supervisor(runner)
            async with anyio.create_task_group() as tasks:
                await tasks.start(supervisor.run)
                tasks.start_soon(mode.queue.give_back, delivery)
                tasks.start_soon(mode.other.cancel, LOCAL_PRINCIPAL, execution_id)
                await mode.store.wait(execution_id, after=0, until_terminal=True)
                while supervisor.running or await mode.queue.depth():
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
    starts = [launch.execution_id for launch in runner.launches]
    assert len(starts) == len(set(starts))
    for execution_id in ids:
        execution, events = await mode.store.load(execution_id), await kinds(mode, execution_id)
        assert [kind.is_terminal for kind in events] == [False] * (len(events) - 1) + [True]
        if execution.started_at is None:
            assert execution.status is ExecutionStatus.CANCELLED
            assert execution_id not in starts


async def _run_until(mode: Mode, runner: ScriptedRunner, execution_id: ExecutionId) -> None:
    supervisor = mode.supervisor(runner)
    with anyio.fail_after(BOUND_SECONDS):
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervisor.run)
            await mode.store.wait(execution_id, after=0, until_terminal=True)
            while supervisor.running:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
