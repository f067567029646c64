"""The Execution aggregate. It decides and records facts; it never saves itself.

`start`, `prepare`, `requeue` and `finish` decide (and raise IllegalTransition); each returns a fact. `apply` turns a
fact into the next state. Both are pure, so a store can replay or compare them.
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

MAX_ATTEMPTS = 3
"""How often a `retry_safe` execution is started at most; when the last of these is lost, it is `lost`."""


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
class Requeued:
    """Whoever ran it is gone, and it waits to be run again."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Finished:
    """The process tree is gone, or there never was one."""

    at: datetime
    outcome: Outcome


Fact = Started | Prepared | Requeued | Finished


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of one command, from submission to its outcome.

    `retry_safe`: the caller said that running the command twice, even at the same time, does no harm. `attempt` counts
    its starts, the one that is waited for included; `requeued_at` is when the latest of them but the first began to
    wait, None on the first. `node`, `started_at` and `isolation` are those of this attempt. `labels` are sorted: what
    its back must offer.
    """

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
    retry_safe: bool = False
    attempt: int = 1
    requeued_at: datetime | None = None
    labels: tuple[str, ...] = ()

    @property
    def queued_at(self) -> datetime:
        """When this attempt began to wait for its start."""
        return self.created_at if self.requeued_at is None else self.requeued_at

    @property
    def may_retry(self) -> bool:
        """True when this attempt, once lost, may be followed by another."""
        return self.retry_safe and self.attempt < MAX_ATTEMPTS

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

    def requeue(self, at: datetime) -> Requeued:
        """Decide that it waits to be run again. Raises IllegalTransition unless it is running and `may_retry`."""
        self._check(ExecutionStatus.PENDING)
        if not self.may_retry:
            raise IllegalTransition(self.id, self.status, ExecutionStatus.PENDING)
        return Requeued(at=at)

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
            case Requeued():
                return replace(
                    self,
                    status=ExecutionStatus.PENDING,
                    node=None,
                    started_at=None,
                    isolation=None,
                    attempt=self.attempt + 1,
                    requeued_at=fact.at,
                )
            case Finished():
                return replace(self, status=fact.outcome.status, ended_at=fact.at, outcome=fact.outcome)
            case _:
                assert_never(fact)

    def check_follows(self, stored: ExecutionStatus) -> None:
        """Raise IllegalTransition unless this may be stored over a state of status `stored`.

        For stores, which see states and not the facts between them. Pending follows nothing without being requeued.
        """
        is_known = self.status is stored or self.status in TRANSITIONS[stored]
        if not is_known or (self.status is ExecutionStatus.PENDING and self.requeued_at is None):
            raise IllegalTransition(self.id, stored, self.status)

    def _check(self, wanted: ExecutionStatus) -> None:
        if wanted not in TRANSITIONS[self.status]:
            raise IllegalTransition(self.id, self.status, wanted)
