"""StateStore: what happened. The one memory of the system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from sandbox_core.domain.events import EventDraft, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal, SessionId
from sandbox_core.domain.status import ExecutionStatus

LARGEST_PAGE_BYTES: Final = 16 << 20
"""Of a list, as stored. Reading a page keeps the event loop from everything else."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a running execution until `expires_at`. `token` is the fencing token."""

    execution_id: ExecutionId
    node: NodeId
    token: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease and the execution as the claim left it."""

    lease: Lease
    execution: Execution


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which executions of one principal to list, newest first, before `before` when given."""

    principal: Principal
    session_id: SessionId | None = None
    statuses: frozenset[ExecutionStatus] = frozenset()
    """Empty means every status."""
    limit: int = 50
    before: ExecutionId | None = None


@dataclass(frozen=True, slots=True)
class ExecutionPage:
    """A page of a list. `next_before` continues it; None at the end."""

    executions: tuple[Execution, ...]
    next_before: ExecutionId | None = None


@dataclass(frozen=True, slots=True)
class LogPage:
    """Events of one log in ascending order, and the execution of the same instant.

    `last_seq` is the number of the newest event in the log, whether in this page or not.
    """

    execution: Execution
    events: tuple[OutputEvent, ...]
    last_seq: int


class Scope(StrEnum):
    """Whose quota a place counts in."""

    NODE = "node"
    PRINCIPAL = "principal"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Place:
    """A running execution's place in the counts of its node, principal and session."""

    execution_id: ExecutionId
    node: NodeId
    principal: Principal
    session_id: SessionId | None


@dataclass(frozen=True, slots=True)
class Quota:
    """How many places may be held at once."""

    per_node: int
    per_principal: int
    per_session: int


class StateStore(Protocol):
    """Executions, their output logs, leases and places.

    Promises:
        Values, not objects: what is stored and what is returned share nothing with the caller.
        Atomic: every method happens wholly or not at all, in one order that all callers see.
        Expiry: an execution and its log expire together, `ttl_seconds` (an adapter's setting, 3600) after the
            last access of any method that names them; running ones never. Expired is ExecutionNotFound.
        Errors: StoreUnavailable when it cannot be reached, StoredDataCorrupt when data cannot be decoded.
    """

    async def create(self, execution: Execution, *, idempotency_key: str | None = None) -> Execution:
        """Store a pending execution and return it.

        With a key that this principal used before (and that has not expired), store nothing and return the first.
        Raises InvalidArgument for one that is not pending, whose id is taken, or that cannot be written as JSON. It may
        wait for its claim `queue_timeout_seconds` of its policy from now on; None is for ever.
        """
        ...

    async def discard(self, execution_id: ExecutionId) -> None:
        """Forget a pending execution that could not be queued. No error when it is unknown or was claimed.

        One that `create` returned to another call by its idempotency key stays: that call was told that it is accepted.
        """
        ...

    async def load(self, execution_id: ExecutionId) -> Execution:
        """Return the execution as it is now. Raises ExecutionNotFound."""
        ...

    async def list_page(self, query: ListQuery) -> ExecutionPage:
        """Return a page, newest first (by id). An unknown `before` still names a position.

        A page ends early, with at least one execution, where what is stored of them passes LARGEST_PAGE_BYTES.
        """
        ...

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Move pending to running for `node`, with a lease. Exactly one caller succeeds.

        After StoreUnavailable the claim may have been made: the same node asks again, and is given it then.

        Raises ClaimRefused when it is not pending or its time to wait is over, ExecutionNotFound.
        """
        ...

    async def seize(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Take over a running execution whose lease has lapsed, with a higher token.

        Raises ClaimRefused when the lease still holds or the execution is not running, ExecutionNotFound.
        """
        ...

    async def renew(self, leases: Sequence[Lease], *, lease_seconds: float) -> Sequence[Lease]:
        """Extend leases, and the places of their executions; return those that still held, with their new expiry.

        A lease that has lapsed but that nobody seized still holds. A place that has lapsed stays lapsed: another may
        have been counted in its stead.
        """
        ...

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        """Append events and, when given, store the execution's next state; return the newest event's number.

        Events are numbered here, without holes. Raises LeaseLost when another token is current or the
        stored status is terminal, IllegalTransition when the state cannot follow the stored one, InvalidArgument when
        it is another execution's or something cannot be written as JSON; then nothing was written. An expired lease
        that nobody seized still writes. A state that is pending again ends the lease, and begins its time to wait anew.
        """
        ...

    async def finish_unclaimed(
        self, execution: Execution, drafts: Sequence[EventDraft], *, only_overdue: bool = False
    ) -> None:
        """Store the terminal state of a pending execution, with its last events.

        Raises ClaimRefused when the stored one is no longer pending, or, with `only_overdue`, while its time to wait is
        not over, IllegalTransition when the given one is not
        terminal, ExecutionNotFound.
        """
        ...

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        """Return the events numbered over `after`, oldest first, and the execution of the same instant.

        At most `max_events`, and data of at most `max_bytes` except that the first event always comes. Costs what the
        page costs, wherever in the log it starts. `after` past the end gives no events. Raises ExecutionNotFound.
        """
        ...

    async def read_last(self, execution_id: ExecutionId, *, after: int = 0, max_bytes: int = 1 << 16) -> LogPage:
        """Return the newest events numbered over `after` whose data fits `max_bytes`, in ascending order.

        The newest event always comes. Costs what the page costs, however long the log. Raises ExecutionNotFound.
        """
        ...

    async def wait(self, execution_id: ExecutionId, *, after: int, until_terminal: bool = False) -> None:
        """Return when the log has an event numbered over `after`, or the status is terminal.

        With `until_terminal` only the terminal status counts. Pushed, not polled. The caller bounds it with a cancel
        scope. Raises ExecutionNotFound.
        """
        ...

    async def reserve(self, place: Place, quota: Quota, *, lease_seconds: float) -> Scope | None:
        """Count one more place, or return the first full scope of node, principal, session (None: reserved).

        A place that is neither released nor renewed through its execution's lease lapses after `lease_seconds`.
        Reserving a place again that is held succeeds. An execution without a session counts only in the others.
        """
        ...

    async def release(self, place: Place) -> None:
        """Give a place back. No error when it has lapsed or was released."""
        ...

    async def lapsed(self, *, limit: int = 100) -> Sequence[ExecutionId]:
        """Return running executions with a lapsed lease and pending ones whose time to wait is over, oldest first.

        One that has expired may be named until it is asked for.
        """
        ...

    async def ping(self) -> None:
        """Raise StoreUnavailable when the store would not answer now."""
        ...
