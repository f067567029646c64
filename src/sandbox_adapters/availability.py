"""Availability: whether the state and the queue answer, asked by every health check and logged once for each outage."""

from __future__ import annotations

import logging

import anyio

from sandbox_core.domain.errors import InfrastructureError
from sandbox_core.ports.queue import ExecutionQueue
from sandbox_core.ports.store import StateStore

TIMEOUT_SECONDS = 2.0

_log = logging.getLogger("sandbox_adapters.sandbox")


class Availability:
    """Asks the store and the queue of one process.

    Args:
        store: asked whether it would take a write now.
        queue: asked how many wait.
    """

    def __init__(self, store: StateStore, queue: ExecutionQueue) -> None:
        self._store = store
        self._queue = queue
        self._problem = ""

    async def depth(self) -> int | None:
        """Return how many wait in the queue; None when the store or the queue does not answer within 2 s."""
        problem = f"no answer within {TIMEOUT_SECONDS:g} s"
        with anyio.move_on_after(TIMEOUT_SECONDS):
            try:
                await self._store.ping()
                depth = await self._queue.depth()
            except InfrastructureError as error:
                problem = str(error)
            else:
                if self._problem:
                    _log.info("Health check passes again")
                self._problem = ""
                return depth
        if not self._problem:
            _log.warning("Health check failed, and will until this is over: %s", problem)
        self._problem = problem
        return None
