"""The Execution aggregate. It decides and records facts; it never saves itself.

`start`, `prepare` and `finish` decide (and raise IllegalTransition); each returns a fact. `apply` turns a fact
into the next state. Both are pure, so a store can replay or compare them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import IllegalTransition
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal, SessionId
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.domain.status import TRANSITIONS, ExecutionStatus


@dataclass(frozen=True, slots=True)
class Started:
    """A node took the execution."""

    at: datetime
    node: NodeId


@dataclass(frozen=True, slots=True)
class Prepared:
    """The process exists, inside this isolation."""

    isolation: Isolation


@dataclass(frozen=True, slots=True)
class Finished:
    """The process tree is gone, or there never was one."""

    at: datetime
    outcome: Outcome


Fact = Started | Prepared | Finished


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of one command, from submission to its outcome."""

    id: ExecutionId
    principal: Principal
    session_id: SessionId | None
    command: Command
    policy: ExecutionPolicy
    created_at: datetime
    status: ExecutionStatus = ExecutionStatus.PENDING
    node: NodeId | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    isolation: Isolation | None = None
    outcome: Outcome | None = None

    @property
    def is_terminal(self) -> bool:
        """True when nothing about this execution will change any more."""
        return self.status.is_terminal

    def start(self, node: NodeId, at: datetime) -> Started:
        """Decide that `node` takes this execution. Raises IllegalTransition unless it is pending."""
        self._check(ExecutionStatus.RUNNING)
        return Started(at=at, node=node)

    def prepare(self, isolation: Isolation) -> Prepared:
        """Record what the runner enforces. Raises IllegalTransition unless it is running."""
        if self.status is not ExecutionStatus.RUNNING:
            raise IllegalTransition(self.id, self.status, "prepared")
        return Prepared(isolation=isolation)

    def finish(self, outcome: Outcome, at: datetime) -> Finished:
        """Decide how it ended. Raises IllegalTransition when the table has no such move."""
        self._check(outcome.status)
        return Finished(at=at, outcome=outcome)

    def apply(self, fact: Fact) -> Execution:
        """Return the state after `fact`."""
        match fact:
            case Started():
                return replace(self, status=ExecutionStatus.RUNNING, node=fact.node, started_at=fact.at)
            case Prepared():
                return replace(self, isolation=fact.isolation)
            case Finished():
                return replace(self, status=fact.outcome.status, ended_at=fact.at, outcome=fact.outcome)
            case _:
                assert_never(fact)

    def _check(self, wanted: ExecutionStatus) -> None:
        if wanted not in TRANSITIONS[self.status]:
            raise IllegalTransition(self.id, self.status, wanted)
