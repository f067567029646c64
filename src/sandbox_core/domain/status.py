"""ExecutionStatus and the transition table, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class ExecutionStatus(StrEnum):
    """Where an execution is in its life. Not whether it succeeded: a command that exits 3 is `completed`."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True when no transition leads out of this status."""
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[ExecutionStatus, frozenset[ExecutionStatus]] = MappingProxyType(
    {
        ExecutionStatus.PENDING: frozenset(
            {ExecutionStatus.RUNNING, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}
        ),
        ExecutionStatus.RUNNING: frozenset(
            {
                ExecutionStatus.COMPLETED,
                ExecutionStatus.FAILED,
                ExecutionStatus.TIMEOUT,
                ExecutionStatus.CANCELLED,
                ExecutionStatus.PENDING,
            }
        ),
        ExecutionStatus.COMPLETED: frozenset(),
        ExecutionStatus.FAILED: frozenset(),
        ExecutionStatus.TIMEOUT: frozenset(),
        ExecutionStatus.CANCELLED: frozenset(),
    }
)
"""Every legal move. A move that is not here is an error and changes nothing.

Back to pending goes only what its caller called `retry_safe`, when whoever ran it is gone: see `Execution.requeue`.
"""
