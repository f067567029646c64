"""ExecutionSupervisor: the back. Takes what there is room for, runs it, keeps leases, ends what was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from sandbox_core.application.admission import Admission
from sandbox_core.application.endings import never_started
from sandbox_core.application.leases import LeaseKeeper
from sandbox_core.application.run import ExecutionRun, RunConfig
from sandbox_core.domain.errors import (
    ClaimRefused,
    ExecutionNotFound,
    InfrastructureError,
    LeaseLost,
    StoreUnavailable,
)
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.control import ControlChannel
from sandbox_core.ports.queue import Delivery, ExecutionQueue, QueueItem
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.ports.store import Claim, Quota, StateStore

_log = logging.getLogger("sandbox_core.supervisor")

DRAIN_SLACK_SECONDS = 5.0
"""What a drain adds to the kill grace before it cancels what still hangs."""

CLAIM_SECONDS = 60.0
"""How long a claim is asked for while the store is away: it may have been made, and then nobody else runs it."""

_FIRST_PAUSE_SECONDS = 0.05

_NOT_OURS = "was queued and is not in the state: it has expired, or those who share the queue have another state"
_DRAINED = "Ended because the server is shutting down."


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """How the back behaves.

    Args:
        lease_seconds: how long a node may be silent; its executions are marked lost at most a third of it later.
        retry_seconds: pause after a queue or store that is away.
        run: see RunConfig.
    """

    lease_seconds: float = 9.0
    retry_seconds: float = 1.0
    run: RunConfig = field(default_factory=RunConfig)


class ExecutionSupervisor:
    """Owns running processes. Start `run` in a task group; end with `drain`, or cancel it to end at once.

    Args:
        quota: places per node, principal and session; `per_node` is how many this supervisor runs at once.
        labels: what this node offers; see ExecutionQueue.take.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        queue: ExecutionQueue,
        control: ControlChannel,
        runner: ProcessRunner,
        clock: Clock,
        node: NodeId,
        quota: Quota,
        config: SupervisorConfig | None = None,
        labels: frozenset[str] = frozenset(),
    ) -> None:
        self._config = config or SupervisorConfig()
        self._store = store
        self._queue = queue
        self._control = control
        self._runner = runner
        self._clock = clock
        self._node = node
        self._quota = quota
        self._labels = labels
        self._admission = Admission(store=store, node=node, quota=quota, lease_seconds=self._config.lease_seconds)
        self._runs: dict[ExecutionId, ExecutionRun] = {}
        self._leases = LeaseKeeper(
            store=store,
            queue=queue,
            clock=clock,
            node=node,
            runs=self._runs,
            lease_seconds=self._config.lease_seconds,
            retry_seconds=self._config.retry_seconds,
        )
        self._taking: anyio.CancelScope | None = None
        self._working: anyio.CancelScope | None = None
        self._idle = anyio.Event()
        self._hurried = anyio.Event()
        self._stopped = anyio.Event()
        self._draining = False

    @property
    def running(self) -> int:
        """How many executions this node runs now."""
        return len(self._runs)

    @property
    def capacity(self) -> int:
        """How many it runs at most."""
        return self._quota.per_node

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until `drain` is done. Cancelling it kills what runs; leases then lapse."""
        try:
            async with anyio.create_task_group() as tasks:
                self._working = tasks.cancel_scope
                tasks.start_soon(self._leases.work)
                room = anyio.Semaphore(self._quota.per_node)
                with anyio.CancelScope() as self._taking:
                    task_status.started()
                    while True:
                        await room.acquire()
                        delivery = await self._take()
                        if delivery.item.execution_id in self._runs:
                            tasks.start_soon(self._take_again, delivery, room)
                        else:
                            tasks.start_soon(self._run_delivery, delivery, self._new_run(delivery.item), room)
                await self._wait_idle()
                tasks.cancel_scope.cancel()
        finally:
            self._stopped.set()

    async def drain(self, *, grace_seconds: float) -> None:
        """Take nothing new, let running ones finish for `grace_seconds`, end the rest, and return when `run` has.

        What waits in a queue that dies with this process ends as `never_started`. `hurry` ends the grace.
        """
        if self._taking is None or self._working is None:
            return
        self._draining = True
        self._taking.cancel()
        for item in await self._queue.close():
            await self._end_unstarted(item)
        with anyio.move_on_after(grace_seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_after, self._hurried, tasks.cancel_scope)
                await self._wait_idle()
                tasks.cancel_scope.cancel()
        for run in list(self._runs.values()):
            run.end(TerminationReason.CANCELLED, _DRAINED, force=self._hurried.is_set())
        with anyio.move_on_after(self._config.run.kill_grace_seconds + DRAIN_SLACK_SECONDS):
            await self._stopped.wait()
        self._working.cancel()
        await self._stopped.wait()

    def hurry(self) -> None:
        """End the grace of a drain now: kill what runs."""
        self._hurried.set()
        if self._draining:
            for run in list(self._runs.values()):
                run.end(TerminationReason.CANCELLED, _DRAINED, force=True)

    async def _take(self) -> Delivery:
        is_told = False
        while True:
            try:
                return await self._queue.take(self._admission.admit, self._labels)
            except InfrastructureError as error:
                if not is_told:
                    _log.warning("cannot take work: %s", error)
                is_told = True
                await self._clock.sleep_until(self._clock.monotonic() + self._config.retry_seconds)

    def _new_run(self, item: QueueItem) -> ExecutionRun:
        run = ExecutionRun(runner=self._runner, store=self._store, clock=self._clock, config=self._config.run)
        self._runs[item.execution_id] = run
        return run

    async def _take_again(self, delivery: Delivery, room: anyio.Semaphore) -> None:
        """Take what runs here: it was handed out in vain, or this node lost its lease and the next attempt is due."""
        item, is_next = delivery.item, False
        try:
            is_next = (await self._store.load(item.execution_id)).status is ExecutionStatus.PENDING
            if is_next and (earlier := self._runs.get(item.execution_id)) is not None:
                earlier.end(TerminationReason.LOST, "Another node took over.", force=True)
                await self._wait_until(lambda: item.execution_id not in self._runs)
                # What ran here gave the place back that both had.
                is_next = not self._draining and await self._admission.admit(item)
                if not is_next:
                    await self._queue.give_back(delivery)
            elif not is_next:
                await self._queue.done(delivery)
        except (InfrastructureError, ExecutionNotFound) as error:
            is_next = False
            _log.warning("%s was taken again, in vain: %s", item.execution_id, error)
        if is_next:
            await self._run_delivery(delivery, self._new_run(item), room)
        else:
            room.release()

    async def _run_delivery(self, delivery: Delivery, run: ExecutionRun, room: anyio.Semaphore) -> None:
        item = delivery.item
        try:
            async with self._control.own(item.execution_id, run.handle):
                await self._claim_and_execute(delivery, run)
        except LeaseLost:
            _log.warning("lease on %s was lost; its process was ended", item.execution_id)
        except Exception:  # noqa: BLE001  # the outermost handler of one execution: the others go on
            _log.exception("execution %s broke its supervisor", item.execution_id)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go(item)
            del self._runs[item.execution_id]
            room.release()
            self._idle.set()

    async def _claim_and_execute(self, delivery: Delivery, run: ExecutionRun) -> None:
        item = delivery.item
        try:
            claim = await self._claim(item.execution_id)
        except (ClaimRefused, ExecutionNotFound) as error:
            if isinstance(error, ExecutionNotFound):
                _log.warning("%s %s", item.execution_id, _NOT_OURS)
            await self._queue.done(delivery)
            return
        except StoreUnavailable as error:
            _log.warning("%s is given back unclaimed: %s", item.execution_id, error)
            with suppress(InfrastructureError):  # then the queue hands it out again by itself
                await self._queue.give_back(delivery)
            return
        await self._queue.done(delivery)
        await run.execute(claim)

    async def _claim(self, execution_id: ExecutionId) -> Claim:
        """Claim, asking again while the store is away: given up at once, a claim that was made would be lost."""
        give_up = self._clock.monotonic() + CLAIM_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._store.claim(execution_id, self._node, lease_seconds=self._config.lease_seconds)
            except StoreUnavailable:
                now = self._clock.monotonic()
                if now >= give_up or self._draining:
                    raise
                await self._clock.sleep_until(now + pause)
                pause = min(2 * pause, self._config.retry_seconds)

    async def _let_go(self, item: QueueItem) -> None:
        try:
            await self._admission.release(item)
            await self._queue.recheck()
        except InfrastructureError as error:
            _log.warning("place of %s was not released and will lapse: %s", item.execution_id, error)

    async def _end_unstarted(self, item: QueueItem) -> None:
        try:
            execution = await self._store.load(item.execution_id)
            if execution.status is not ExecutionStatus.PENDING:
                return
            await self._store.finish_unclaimed(*never_started(execution, "the server shut down.", self._clock.now()))
        except (ClaimRefused, ExecutionNotFound):
            return  # cancelled, or expired, meanwhile

    async def _wait_idle(self) -> None:
        await self._wait_until(lambda: not self._runs)

    async def _wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so that changes only when an execution is over."""
        # Several wait, so a fresh event may only replace one that is set.
        while not is_so():
            if self._idle.is_set():
                self._idle = anyio.Event()
            await self._idle.wait()


async def _cancel_after(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
