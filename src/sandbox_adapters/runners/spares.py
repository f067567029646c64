"""SparePool: sandboxes built ahead, each for one command."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup

from sandbox_adapters.runners.spare_script import SPARE_ARGV
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import SandboxError
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Launch

_log = logging.getLogger("sandbox_adapters.runners")

_ID = ExecutionId("spare")


class Spare(Protocol):
    """A sandbox that waits in SPARE_ARGV."""

    @property
    def usable(self) -> bool:
        """False when it has ended, or its launcher has."""
        ...


_S = TypeVar("_S", bound=Spare)


class SparePool(Generic[_S]):
    """Holds a few spares for one set of limits; single use, bounded, refilled in the background after each start.

    The limits are those of the last command, once two in a row had the same: a change of limits drops the spares.

    Args:
        size: how many wait at most; 0 for none.
        build: starts a sandbox; the pool owns it until `take` hands it over.
        end: ends one that was not handed over.
        tasks: where refilling runs.
        pause_seconds: between handing a spare over and building the next. A short command has ended by then; building
            beside it costs it a third of its time, as both wait for the same locks in the kernel.
    """

    def __init__(
        self,
        size: int,
        *,
        build: Callable[[Launch], Awaitable[_S]],
        end: Callable[[_S], Coroutine[Any, Any, None]],
        tasks: TaskGroup,
        pause_seconds: float = 0.008,
    ) -> None:
        self._size = size
        self._build = build
        self._end = end
        self._tasks = tasks
        self._pause_seconds = pause_seconds
        self._limits: ResourceLimits | None = None
        self._last_asked: ResourceLimits | None = None
        self._ready: deque[_S] = deque()
        self._filling = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many spares wait."""
        return len(self._ready)

    def take(self, limits: ResourceLimits, *, refill: bool = True) -> _S | None:
        """Return a spare for these limits, now the caller's; None when there is none.

        With `refill` others are built behind the caller; a busy machine would only build them instead of what it runs.
        """
        wanted = _of_the_runner(limits)
        found: _S | None = None
        if wanted == self._limits:
            while self._ready and found is None:
                spare = self._ready.popleft()
                if spare.usable:
                    found = spare
                else:
                    self._tasks.start_soon(self._end, spare)
        elif wanted == self._last_asked:
            self._limits = wanted
            self._drop()
        self._last_asked = wanted
        if refill and not self._filling and not self._closed and self._size:
            self._filling = True
            self._tasks.start_soon(self._fill)
        return found

    async def aclose(self) -> None:
        """End every spare; nothing is refilled any more."""
        self._closed = True
        while self._ready:
            await self._end(self._ready.popleft())

    def _drop(self) -> None:
        while self._ready:
            self._tasks.start_soon(self._end, self._ready.popleft())

    async def _fill(self) -> None:
        try:
            await anyio.sleep(self._pause_seconds)
            while (limits := self._limits) is not None and len(self._ready) < self._size and self._wants(limits):
                policy = ExecutionPolicy(resource_limits=limits)
                spare = await self._build(Launch(_ID, Command(argv=SPARE_ARGV, interactive=True), policy))
                if self._wants(limits):
                    self._ready.append(spare)
                else:
                    await self._end(spare)
        except SandboxError as error:
            # The next start is a cold one and says itself what is wrong.
            if not self._closed:
                _log.warning("no spare sandbox could be built: %s", error)
        finally:
            self._filling = False

    def _wants(self, limits: ResourceLimits) -> bool:
        return not self._closed and limits == self._limits


def _of_the_runner(limits: ResourceLimits) -> ResourceLimits:
    """Return the limits that a sandbox is built with; the others are the supervisor's."""
    return replace(
        limits, timeout_seconds=None, idle_timeout_seconds=None, queue_timeout_seconds=None, max_output_bytes=None
    )
