"""RemoteBack: what a front keeps of the back when executions run in other processes."""

from __future__ import annotations

from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from sandbox_core.application.leases import LeaseKeeper
from sandbox_core.domain.ids import NodeId
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import ExecutionQueue
from sandbox_core.ports.store import StateStore


class Back(Protocol):
    """What a process does with the executions of its queue; ExecutionSupervisor has the words."""

    @property
    def running(self) -> int:
        """How many executions this process runs now."""
        ...

    @property
    def capacity(self) -> int:
        """How many it runs at most."""
        ...

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until `drain` is done."""
        ...

    async def drain(self, *, grace_seconds: float) -> None:
        """Take nothing new, let running ones finish for a while, and return when `run` has."""
        ...

    def hurry(self) -> None:
        """End the grace of a drain now."""
        ...


class RemoteBack:
    """A Back that takes nothing. It marks what dead workers left running, so that this is told also when none is left.

    Args:
        lease_seconds, retry_seconds: as in SupervisorConfig.
    """

    running = 0
    capacity = 0

    def __init__(
        self,
        *,
        store: StateStore,
        queue: ExecutionQueue,
        clock: Clock,
        node: NodeId,
        lease_seconds: float,
        retry_seconds: float = 1.0,
    ) -> None:
        self._queue = queue
        self._leases = LeaseKeeper(
            store=store,
            queue=queue,
            clock=clock,
            node=node,
            runs={},
            lease_seconds=lease_seconds,
            retry_seconds=retry_seconds,
        )
        self._working: anyio.CancelScope | None = None
        self._stopped = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep looking for what was lost."""
        try:
            with anyio.CancelScope() as self._working:
                task_status.started()
                await self._leases.work()
        finally:
            self._stopped.set()

    async def drain(self, *, grace_seconds: float) -> None:  # noqa: ARG002  # as a Back that runs something has
        """Put nothing into the queue any more; what waits there is the workers'."""
        await self._queue.close()
        if self._working is not None:
            self._working.cancel()
            await self._stopped.wait()

    def hurry(self) -> None:
        """Nothing runs here."""
