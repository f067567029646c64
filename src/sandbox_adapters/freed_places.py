"""Places that other processes gave back: a queue that waits for one looks again."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sandbox_core.ports.queue import ExecutionQueue


@runtime_checkable
class PlacesElsewhere(Protocol):
    """A store whose places other processes hold too."""

    async def places_freed(self) -> None:
        """Return when others may have given places back."""
        ...


async def ask_again(places: PlacesElsewhere, queue: ExecutionQueue) -> None:
    """Let the queue look again whenever places may be free, until cancelled."""
    while True:
        await places.places_freed()
        await queue.recheck()
