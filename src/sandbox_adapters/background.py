"""Background: what an adapter does beside its calls while its context lasts; and rounds of it, by the clock."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from logging import Logger
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from sandbox_core.domain.errors import InfrastructureError, SandboxError
from sandbox_core.ports.clock import Clock

Work = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """Base of adapters that run coroutines while they are entered; leaving cancels them and waits for their end.

    An error of a coroutine cancels whoever is inside the context, and leaving raises it in an ExceptionGroup. An error
    of the body passes as it is.

    Args:
        works: run from the start, each in a task of its own.
    """

    def __init__(self, *works: Work) -> None:
        self._works = works
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        for work in self._works:
            self._tasks.start_soon(work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            # The body's error is not given to the task group, which would wrap it in an ExceptionGroup.
            await tasks.__aexit__(None, None, None)


async def rounds(
    work: Work,
    *,
    clock: Clock,
    every_seconds: float,
    log: Logger,
    complaint: str,
    tolerated: tuple[type[SandboxError], ...] = (InfrastructureError,),
) -> None:
    """Do `work` at once and then every so many seconds, until cancelled. A round that lasts longer delays the next.

    Args:
        work: one round.
        clock: says when a round is due.
        every_seconds: from when a round was due to when the next one is.
        log: where a round that failed is told: the first of those in a row, as `complaint` and the error.
        complaint: what could not be done.
        tolerated: errors after which the next round comes as if there had been none. Any other passes.
    """
    due = clock.monotonic()
    failed = False
    while True:
        try:
            await work()
        except tolerated as error:
            if not failed:
                log.warning("%s: %s", complaint, error)
            failed = True
        else:
            failed = False
        due = max(due, clock.monotonic()) + every_seconds
        await clock.sleep_until(due)
