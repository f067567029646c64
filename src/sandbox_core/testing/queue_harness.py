"""What the queue contract needs: a factory of queues, items, and admissions that answer as a test says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

import anyio
import anyio.lowlevel

from sandbox_core.domain.ids import ExecutionId, Principal, SessionId, new_execution_id
from sandbox_core.ports.queue import ExecutionQueue, QueueItem

BOUND_SECONDS = 60
"""Real seconds after which a test of the contract fails instead of hanging."""


class MakeQueue(Protocol):
    """Makes an empty queue with these bounds."""

    async def __call__(self, *, max_depth: int = 100, max_per_principal: int | None = None) -> ExecutionQueue:
        """Return the queue; the fixture closes what it opened."""
        ...


def item(principal: str = "alice", session: str | None = None, *labels: str) -> QueueItem:
    """Return an item of a new execution that needs these labels."""
    now = datetime.now(UTC)
    session_id = None if session is None else SessionId(session)
    return QueueItem(new_execution_id(now), Principal(principal), session_id, now, tuple(sorted(labels)))


async def everyone(_: QueueItem) -> bool:
    """Admit anything."""
    return True


class Gate:
    """An admission that refuses some principals or sessions, and counts the questions."""

    def __init__(self, *shut: str) -> None:
        self.shut = set(shut)
        self.asked: list[ExecutionId] = []

    async def __call__(self, asked: QueueItem) -> bool:
        self.asked.append(asked.execution_id)
        await anyio.lowlevel.checkpoint()
        return asked.principal not in self.shut and asked.session_id not in self.shut


async def take_all(queue: ExecutionQueue, count: int, *offers: str) -> list[QueueItem]:
    """Take `count` items, offering these labels, acknowledge each, and return them in the order in which they came."""
    taken = []
    with anyio.fail_after(BOUND_SECONDS):
        for _ in range(count):
            delivery = await queue.take(everyone, frozenset(offers))
            await queue.done(delivery)
            taken.append(delivery.item)
    return taken


async def settle() -> None:
    """Let every ready task run."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()
