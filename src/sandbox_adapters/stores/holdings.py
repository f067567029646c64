"""Holdings: how much of the store each principal fills, and which execution goes first when it is full."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from sandbox_core.domain.ids import ExecutionId, Principal


@dataclass(slots=True)
class _Holding:
    executions: int = 0
    size_bytes: int = 0
    finished: OrderedDict[ExecutionId, None] = field(default_factory=OrderedDict)
    """Least recently accessed first."""


class Holdings:
    """Counts per principal, so that one that keeps much makes room by itself and not at the cost of others."""

    def __init__(self) -> None:
        self._of: dict[Principal, _Holding] = {}

    def add(self, principal: Principal, size_bytes: int) -> None:
        """Count one execution more."""
        holding = self._of.setdefault(principal, _Holding())
        holding.executions += 1
        holding.size_bytes += size_bytes

    def grow(self, principal: Principal, size_bytes: int) -> None:
        """Count bytes more, or fewer."""
        self._of[principal].size_bytes += size_bytes

    def touch(self, principal: Principal, execution_id: ExecutionId) -> None:
        """Note that a finished execution was accessed."""
        finished = self._of[principal].finished
        finished[execution_id] = None
        finished.move_to_end(execution_id)

    def remove(self, principal: Principal, execution_id: ExecutionId, size_bytes: int) -> None:
        """Count one execution less."""
        holding = self._of[principal]
        holding.executions -= 1
        holding.size_bytes -= size_bytes
        holding.finished.pop(execution_id, None)
        if not holding.executions:
            del self._of[principal]

    def first_to_go(self, *, spare: ExecutionId, by_bytes: bool) -> ExecutionId | None:
        """Return the least recently accessed finished execution, except `spare`, of the principal that holds the most.

        Only principals that have one count; None when nobody has.

        Args:
            by_bytes: whether the most is measured in bytes or in executions.
        """
        candidates = [
            (holding, first)
            for holding in self._of.values()
            if (first := next((each for each in holding.finished if each != spare), None)) is not None
        ]
        if not candidates:
            return None
        # Of two that hold as much, the one with more that nobody waits for any more.
        _, first = max(
            candidates,
            key=lambda each: (each[0].size_bytes if by_bytes else each[0].executions, len(each[0].finished)),
        )
        return first
