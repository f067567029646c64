"""Front and back, composed by hand over local adapters, a scripted runner and a fake clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from sandbox_adapters.control.local import LocalControlChannel
from sandbox_adapters.fleet.local import LocalFleet
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.application.service import ExecutionService, Submission
from sandbox_core.application.supervisor import ExecutionSupervisor, SupervisorConfig
from sandbox_core.domain.command import Command
from sandbox_core.domain.events import OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, NodeId, Principal, SessionId
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.fleet import Fleet
from sandbox_core.ports.store import Quota
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.scripted_runner import Script, ScriptedRunner

BOUND_SECONDS = 30

CEILING = ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=300, max_output_bytes=1 << 20))
DEFAULTS = ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=60, max_output_bytes=4096))


@dataclass
class House:
    """The whole system in one process."""

    clock: FakeClock
    store: MemoryStateStore
    queue: LocalQueue
    control: LocalControlChannel
    runner: ScriptedRunner
    service: ExecutionService
    supervisor: ExecutionSupervisor
    principal: Principal = LOCAL_PRINCIPAL
    followed: list[OutputEvent] = field(default_factory=list)

    async def submit(
        self,
        text: str,
        *,
        session: str | None = None,
        principal: Principal = LOCAL_PRINCIPAL,
        interactive: bool = False,
        stdin: bytes = b"",
        limits: ResourceLimits | None = None,
        key: str | None = None,
        retry_safe: bool = False,
    ) -> ExecutionId:
        """Submit shell text and return the id."""
        submission = Submission(
            Command(shell=text, interactive=interactive, stdin=stdin),
            ExecutionPolicy(resource_limits=limits or ResourceLimits()),
            SessionId(session) if session else None,
            key,
            retry_safe=retry_safe,
        )
        return (await self.service.submit(principal, submission)).id

    async def ended(self, execution_id: ExecutionId, principal: Principal = LOCAL_PRINCIPAL) -> Execution:
        """Wait for the end, in bounded real time, and return the execution."""
        with anyio.fail_after(BOUND_SECONDS):
            await self.service.wait(principal, execution_id, until_terminal=True)
        return await self.service.get(principal, execution_id)

    async def events(self, execution_id: ExecutionId) -> tuple[OutputEvent, ...]:
        """Return the whole log."""
        return (await self.store.read(execution_id)).events

    async def started(self, count: int) -> None:
        """Wait until `count` processes run."""
        with anyio.fail_after(BOUND_SECONDS):
            while self.runner.running < count:
                await self.clock.settle()


OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@asynccontextmanager
async def open_house(
    scripts: Mapping[str, Script] | None = None,
    *,
    default: Script | None = None,
    quota: Quota | None = None,
    max_queued: int = 100,
    labels: frozenset[str] = frozenset(),
    fleet: Fleet | None = None,
    config: SupervisorConfig | None = None,
) -> AsyncIterator[House]:
    """Compose and start a house; drains it at the end."""
    clock = FakeClock()
    store, queue, control = (
        MemoryStateStore(clock),
        LocalQueue(max_depth=max_queued, clock=clock),
        LocalControlChannel(),
    )
    runner = ScriptedRunner(scripts, default=default, clock=clock)
    service = ExecutionService(
        store=store,
        queue=queue,
        control=control,
        clock=clock,
        ceiling=CEILING,
        defaults=DEFAULTS,
        screen=runner.unenforceable,
        fleet=LocalFleet(labels) if fleet is None else fleet,
    )
    supervisor = ExecutionSupervisor(
        store=store,
        queue=queue,
        control=control,
        runner=runner,
        clock=clock,
        node=NodeId("node-1"),
        quota=quota or Quota(per_node=10, per_principal=10, per_session=5),
        labels=labels,
        config=config,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        try:
            yield House(clock, store, queue, control, runner, service, supervisor)
        finally:
            with anyio.fail_after(BOUND_SECONDS, shield=True):
                supervisor.hurry()
                await supervisor.drain(grace_seconds=0)


@pytest.fixture
def house() -> OpenHouse:
    """Return the composer, so that each test says what its house is like."""
    return open_house
