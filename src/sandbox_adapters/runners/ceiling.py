"""CeilingRunner: holds what comes out of a shared queue to the ceiling of the worker that runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields, replace

from sandbox_core.domain.errors import PolicyRefused, PolicyViolation
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits, resolve
from sandbox_core.ports.runner import Launch, Process, ProcessRunner

_REASON = "over the worker's ceiling"


class CeilingRunner:
    """Satisfies `ProcessRunner`. A server resolved the policy under its own ceiling; here the worker's holds as well.

    What asks for more is refused before the launch, each field named. What the worker's operator denies or requires
    besides is added.

    Args:
        runner: what runs the rest; entered and left by its owner.
        ceiling: of this process.
    """

    def __init__(self, runner: ProcessRunner, ceiling: ExecutionPolicy) -> None:
        self._runner = runner
        # Of the time in the queue there is nothing left to hold.
        limits = replace(ceiling.resource_limits, queue_timeout_seconds=None)
        self._ceiling = replace(ceiling, resource_limits=limits)

    @property
    def name(self) -> str:
        """The name of the runner inside."""
        return self._runner.name

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
        """Return what is over the ceiling, else what the runner cannot enforce."""
        try:
            return self._runner.unenforceable(self._narrowed(policy))
        except PolicyRefused as refused:
            return refused.violations

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:
        """Start under both ceilings; entering raises PolicyRefused for what is over this one."""
        return self._started(launch)

    @asynccontextmanager
    async def _started(self, launch: Launch) -> AsyncIterator[Process]:
        async with self._runner.start(replace(launch, policy=self._narrowed(launch.policy))) as process:
            yield process

    def _narrowed(self, policy: ExecutionPolicy) -> ExecutionPolicy:
        unbounded = [
            PolicyViolation(f"resource_limits.{item.name}", "no bound", f"at most {bound}", _REASON)
            for item in fields(ResourceLimits)
            if getattr(policy.resource_limits, item.name) is None
            and (bound := getattr(self._ceiling.resource_limits, item.name)) is not None
        ]
        try:
            narrowed = resolve(policy, ceiling=self._ceiling, defaults=ExecutionPolicy())
        except PolicyRefused as refused:
            over = [replace(violation, reason=_REASON) for violation in refused.violations]
            raise PolicyRefused([*over, *unbounded]) from None
        if unbounded:
            raise PolicyRefused(unbounded)
        return narrowed
