"""Places: how many executions run, per node, principal and session, counted without a scan."""

from __future__ import annotations

from collections import Counter

from sandbox_adapters.stores.deadlines import Deadlines
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.ports.store import Place, Quota, Scope

_Held = tuple[str, str]


class Places:
    """The places that are held, each until it is released or lapses. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._held: dict[_Held, Place] = {}
        self._deadlines: Deadlines[_Held] = Deadlines()
        self._counts: Counter[tuple[str, ...]] = Counter()

    def reserve(self, place: Place, quota: Quota, now: float, deadline: float) -> Scope | None:
        """Hold a place until `deadline`, or return the first full scope."""
        self._drop_lapsed(now)
        key = (place.execution_id, place.node)
        if key not in self._held:
            for (scope, *owner), limit in zip(_scopes(place), _limits(quota), strict=False):
                if self._counts[(scope, *owner)] >= limit:
                    return Scope(scope)
            self._held[key] = place
            for counted in _scopes(place):
                self._counts[counted] += 1
        self._deadlines.set(key, deadline)
        return None

    def extend(self, execution_id: ExecutionId, node: NodeId, now: float, deadline: float) -> None:
        """Hold a place longer, when it is held."""
        self._drop_lapsed(now)
        if (execution_id, node) in self._held:
            self._deadlines.set((execution_id, node), deadline)

    def release(self, place: Place) -> None:
        """Give a place back, when it is held."""
        self._drop((place.execution_id, place.node))

    def _drop_lapsed(self, now: float) -> None:
        for key in self._deadlines.due(now):
            self._drop(key)

    def _drop(self, key: _Held) -> None:
        place = self._held.pop(key, None)
        if place is None:
            return
        self._deadlines.discard(key)
        for counted in _scopes(place):
            self._counts[counted] -= 1
            if not self._counts[counted]:
                del self._counts[counted]


def _scopes(place: Place) -> list[tuple[str, ...]]:
    scopes: list[tuple[str, ...]] = [(Scope.NODE, place.node), (Scope.PRINCIPAL, place.principal)]
    if place.session_id is not None:
        scopes.append((Scope.SESSION, place.principal, place.session_id))
    return scopes


def _limits(quota: Quota) -> tuple[int, int, int]:
    return quota.per_node, quota.per_principal, quota.per_session
