"""Undo: takes back creations whose answer never came, once Redis is there again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from sandbox_core.domain.errors import InfrastructureError, StoreUnavailable
from sandbox_core.domain.ids import ExecutionId

MOST: Final = 10_000
"""Creations in doubt that are remembered; the time to live clears away what is beyond."""

_PAUSE_SECONDS: Final = 1.0
_TIMES: Final = 2
"""How often each is taken back: what a paused Redis still has in its sockets may be carried out after the first."""


class Undo:
    """A queue of executions to discard. A task works on it while there are any.

    Args:
        discard: forgets a pending execution.
    """

    def __init__(self, discard: Callable[[ExecutionId], Awaitable[None]]) -> None:
        self._discard = discard
        self._waiting: OrderedDict[ExecutionId, int] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def later(self, execution_id: ExecutionId) -> None:
        """Discard this execution as soon as Redis answers."""
        self._waiting[execution_id] = _TIMES
        if len(self._waiting) > MOST:
            self._waiting.popitem(last=False)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="redis-undo")

    def not_any_more(self, execution_id: ExecutionId) -> None:
        """Leave this execution alone: it was created after all, and whoever asked knows."""
        self._waiting.pop(execution_id, None)

    async def stop(self) -> None:
        """Give up what is left."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while self._waiting:
            for execution_id in list(self._waiting):
                times = self._waiting.get(execution_id)
                if times is None:
                    continue
                try:
                    await self._discard(execution_id)
                except StoreUnavailable:
                    break
                except InfrastructureError:
                    times = 1
                if times > 1 and execution_id in self._waiting:
                    self._waiting[execution_id] = times - 1
                else:
                    self._waiting.pop(execution_id, None)
            await asyncio.sleep(_PAUSE_SECONDS)
