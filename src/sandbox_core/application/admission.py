"""Who may start one more, and why not."""

from __future__ import annotations

from sandbox_core.domain.ids import NodeId
from sandbox_core.ports.queue import QueueItem
from sandbox_core.ports.store import Place, Quota, StateStore


def share_of_one(total: int, principals: int) -> int:
    """Return how many of `total` places one of `principals` known principals may hold at once (at least 1).

    With two or more, all but one of them together can never take the last place, so that nobody is starved
    while `principals` is at most `total`.
    """
    if principals < 2:
        return total
    return max(1, (total - 1) // (principals - 1))


class Admission:
    """Reserves places for one node, in the store, so that the counts hold over all nodes.

    Args:
        quota: places per node, principal and session.
        lease_seconds: how long a place survives a holder that vanished.
    """

    def __init__(self, *, store: StateStore, node: NodeId, quota: Quota, lease_seconds: float) -> None:
        self._store = store
        self._node = node
        self._quota = quota
        self._lease_seconds = lease_seconds

    async def admit(self, item: QueueItem) -> bool:
        """Reserve a place for a queued execution; False when its node, principal or session has none left."""
        full = await self._store.reserve(self._place(item), self._quota, lease_seconds=self._lease_seconds)
        return full is None

    async def release(self, item: QueueItem) -> None:
        """Give the place back."""
        await self._store.release(self._place(item))

    def _place(self, item: QueueItem) -> Place:
        return Place(
            execution_id=item.execution_id, node=self._node, principal=item.principal, session_id=item.session_id
        )
