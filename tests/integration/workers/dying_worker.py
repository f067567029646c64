"""A worker that kills itself at a point of an execution's life: a composition root, not a hook in the product.

Run as `python -m tests.integration.workers.dying_worker REDIS_URL POINT LABEL`; it takes only what needs LABEL.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from enum import StrEnum
from typing import Any, NoReturn

import anyio
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.control.redis import RedisControlChannel, node_in
from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.runners.local import LocalRunner
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.application.supervisor import ExecutionSupervisor, SupervisorConfig
from sandbox_core.domain.events import EventDraft
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.ports.runner import Launch, Process, ProcessRunner
from sandbox_core.ports.store import Claim, Lease, Quota

LEASE_SECONDS = 3.0


class Point(StrEnum):
    """Where it dies."""

    BEFORE_CLAIM = "before its claim"
    CLAIMED = "claimed, the item not done"
    LAUNCHING = "before its start"
    RUNNING = "while it runs"
    ENDING = "before the last event is stored"
    ENDED = "after the last event was stored"


def die() -> NoReturn:
    """End this process as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nothing comes after SIGKILL")


class DyingStore(RedisStateStore):
    """The store of a worker that dies at a point."""

    point: Point | None = None

    async def lapsed(self, *, limit: int = 100) -> Sequence[ExecutionId]:  # of the port
        """Leave the dead to the survivor, however long this one lives."""
        return []

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        if self.point is Point.BEFORE_CLAIM:
            die()
        claim = await super().claim(execution_id, node, lease_seconds=lease_seconds)
        if self.point is Point.CLAIMED:
            die()
        return claim

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        ends = execution is not None and execution.is_terminal
        if ends and self.point is Point.ENDING:
            die()
        seq = await super().append(lease, drafts, execution)
        if self.point is Point.RUNNING and any(draft.kind.is_output for draft in drafts):
            die()
        if ends and self.point is Point.ENDED:
            die()
        return seq


class DyingRunner(LocalRunner):
    """The runner of a worker that dies before it starts anything."""

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:
        return die()


class Parts:
    """What a front or a back is made of, on one Redis."""

    def __init__(self, url: str, name: str, store: type[RedisStateStore] = RedisStateStore) -> None:
        self.clock = SystemClock()
        self.node = NodeId(name)
        self.connection = RedisConnection(RedisOptions(SecretStr(url)))
        self.store = store(self.connection, self.clock, starts_here=False)
        self.queue = RedisQueue(connection=self.connection, visibility_seconds=LEASE_SECONDS)
        self.control = RedisControlChannel(connection=self.connection, node=self.node, locate=node_in(self.store))

    def supervisor(self, runner: ProcessRunner, labels: frozenset[str]) -> ExecutionSupervisor:
        """Return a back of them."""
        return ExecutionSupervisor(
            store=self.store,
            queue=self.queue,
            control=self.control,
            runner=runner,
            clock=self.clock,
            node=self.node,
            quota=Quota(per_node=20, per_principal=1000, per_session=1000),
            config=SupervisorConfig(lease_seconds=LEASE_SECONDS),
            labels=labels,
        )


@asynccontextmanager
async def entered(parts: Parts, *more: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    """Enter the parts, and what else there is."""
    async with AsyncExitStack() as stack:
        adapters: list[AbstractAsyncContextManager[Any]] = [parts.connection, parts.store, parts.queue, parts.control]
        for adapter in (*adapters, *more):
            await stack.enter_async_context(adapter)
        yield


async def work(url: str, point: Point, label: str) -> None:
    """Take and run until it is dead."""
    parts = Parts(url, f"dying-{label}", DyingStore)
    DyingStore.point = point
    runner = DyingRunner() if point is Point.LAUNCHING else LocalRunner()
    async with entered(parts, runner):
        await parts.supervisor(runner, frozenset({label})).run()


if __name__ == "__main__":
    anyio.run(work, sys.argv[1], Point(sys.argv[2]), sys.argv[3])
