"""StoreModel: what a StateStore must answer, worked out the slow and obvious way from plain dicts.

Independent of every adapter: it scans, compares and counts anew for each question. An error is its code as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sandbox_core.domain.errors import ClaimRefused, ExecutionNotFound, LeaseLost
from sandbox_core.domain.events import EventDraft, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import ExecutionPage, Lease, ListQuery, LogPage, Place, Quota, Scope

_NOT_FOUND, _REFUSED, _LOST = ExecutionNotFound.code, ClaimRefused.code, LeaseLost.code


@dataclass
class _Kept:
    execution: Execution
    key: tuple[Principal, str] | None
    accessed: float
    events: list[OutputEvent] = field(default_factory=list)
    token: int | None = None
    lapses: float | None = None
    """When the lease lapses, or the time to wait is over; None for never."""
    told: bool = False

    def is_overdue(self, now: float) -> bool:
        return not self.execution.is_terminal and self.lapses is not None and self.lapses <= now

    def begin_to_wait(self, now: float) -> None:
        seconds = self.execution.policy.resource_limits.queue_timeout_seconds
        self.lapses = None if seconds is None else now + seconds


class StoreModel:
    """The dicts, and a time of their own."""

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._now = 0.0
        self._kept: dict[ExecutionId, _Kept] = {}
        self._expired: set[ExecutionId] = set()
        self._places: dict[tuple[ExecutionId, NodeId], tuple[Place, float]] = {}

    def advance(self, seconds: float) -> None:
        """Let time pass, and drop what has expired."""
        self._now += seconds
        for execution_id, kept in list(self._kept.items()):
            running = kept.execution.status is ExecutionStatus.RUNNING
            if not running and kept.accessed + self._ttl <= self._now:
                del self._kept[execution_id]
                self._expired.add(execution_id)
        for key, (_, lapses) in list(self._places.items()):
            if lapses <= self._now:
                del self._places[key]

    def current(self, execution_id: ExecutionId) -> Execution | None:
        """Look at an execution without accessing it."""
        kept = self._kept.get(execution_id)
        return None if kept is None else kept.execution

    def create(self, execution: Execution, key: str | None) -> Execution:
        """Mirror `create`."""
        full_key = None if key is None else (execution.principal, key)
        for kept in self._kept.values():
            if full_key is not None and kept.key == full_key:
                kept.accessed = self._now
                kept.told = True
                return kept.execution
        self._kept[execution.id] = _Kept(execution, full_key, self._now)
        self._kept[execution.id].begin_to_wait(self._now)
        return execution

    def discard(self, execution_id: ExecutionId) -> None:
        """Mirror `discard`."""
        kept = self._kept.get(execution_id)
        if kept is not None and kept.execution.status is ExecutionStatus.PENDING and not kept.told:
            del self._kept[execution_id]

    def load(self, execution_id: ExecutionId) -> Execution | str:
        """Mirror `load`."""
        kept = self._access(execution_id)
        return _NOT_FOUND if kept is None else kept.execution

    def claim(self, execution_id: ExecutionId, node: NodeId, at: datetime, seconds: float) -> Execution | str:
        """Mirror `claim`; `take_token` tells which token it gave."""
        kept = self._access(execution_id)
        if kept is None:
            return _NOT_FOUND
        if kept.execution.status is not ExecutionStatus.PENDING or kept.is_overdue(self._now):
            return _REFUSED
        kept.execution = kept.execution.apply(kept.execution.start(node, at))
        kept.lapses = self._now + seconds
        return kept.execution

    def seize(self, execution_id: ExecutionId, seconds: float) -> Execution | str:
        """Mirror `seize`; `take_token` tells which token it gave."""
        kept = self._access(execution_id)
        if kept is None:
            return _NOT_FOUND
        if kept.execution.status is not ExecutionStatus.RUNNING or not kept.is_overdue(self._now):
            return _REFUSED
        kept.lapses = self._now + seconds
        return kept.execution

    def take_token(self, lease: Lease) -> None:
        """Learn the token of a claim that was just made; it must be higher than the one before."""
        kept = self._kept[lease.execution_id]
        assert kept.token is None or lease.token > kept.token
        kept.token = lease.token

    def renew(self, leases: Sequence[Lease], seconds: float) -> list[tuple[ExecutionId, int]]:
        """Mirror `renew`: the ids and tokens that still held."""
        held = []
        for lease in leases:
            kept = self._writable(lease)
            if kept is None:
                continue
            kept.lapses = self._now + seconds
            key = (lease.execution_id, lease.node)
            if key in self._places:
                self._places[key] = (self._places[key][0], self._now + seconds)
            held.append((lease.execution_id, lease.token))
        return held

    def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None) -> int | str:
        """Mirror `append`."""
        kept = self._writable(lease)
        if kept is None:
            return _LOST
        self._write(kept, drafts, execution)
        return len(kept.events)

    def finish_unclaimed(self, execution: Execution, draft: EventDraft, *, only_overdue: bool) -> str | None:
        """Mirror `finish_unclaimed`."""
        kept = self._access(execution.id)
        if kept is None:
            return _NOT_FOUND
        if kept.execution.status is not ExecutionStatus.PENDING:
            return _REFUSED
        if only_overdue and not kept.is_overdue(self._now):
            return _REFUSED
        self._write(kept, [draft], execution)
        return None

    def read(self, execution_id: ExecutionId, after: int, max_events: int, max_bytes: int) -> LogPage | str:
        """Mirror `read`."""
        kept = self._access(execution_id)
        if kept is None:
            return _NOT_FOUND
        events = [event for event in kept.events if event.seq > after][:max_events]
        while len(events) > 1 and sum(len(event.data) for event in events) > max_bytes:
            events.pop()
        return LogPage(kept.execution, tuple(events), len(kept.events))

    def read_last(self, execution_id: ExecutionId, after: int, max_bytes: int) -> LogPage | str:
        """Mirror `read_last`."""
        kept = self._access(execution_id)
        if kept is None:
            return _NOT_FOUND
        events = [event for event in kept.events if event.seq > after]
        while len(events) > 1 and sum(len(event.data) for event in events) > max_bytes:
            events.pop(0)
        return LogPage(kept.execution, tuple(events), len(kept.events))

    def list_page(self, query: ListQuery) -> ExecutionPage:
        """Mirror `list_page`."""
        found = [
            kept.execution
            for kept in self._kept.values()
            if kept.execution.principal == query.principal
            and query.session_id in (None, kept.execution.session_id)
            and (not query.statuses or kept.execution.status in query.statuses)
            and (query.before is None or kept.execution.id < query.before)
        ]
        found.sort(key=lambda execution: execution.id, reverse=True)
        page = tuple(found[: query.limit])
        return ExecutionPage(page, page[-1].id if len(found) > query.limit else None)

    def held(self, place: Place) -> Place | None:
        """Return the place that this execution holds on this node."""
        held = self._places.get((place.execution_id, place.node))
        return None if held is None else held[0]

    def reserve(self, place: Place, quota: Quota, seconds: float) -> Scope | None:
        """Mirror `reserve`."""
        if self.held(place) is None:
            others = [other for other, _ in self._places.values()]
            mine = [other for other in others if other.principal == place.principal]
            if sum(other.node == place.node for other in others) >= quota.per_node:
                return Scope.NODE
            if len(mine) >= quota.per_principal:
                return Scope.PRINCIPAL
            in_session = sum(other.session_id == place.session_id for other in mine)
            if place.session_id is not None and in_session >= quota.per_session:
                return Scope.SESSION
        self._places[(place.execution_id, place.node)] = (place, self._now + seconds)
        return None

    def release(self, place: Place) -> None:
        """Mirror `release`."""
        self._places.pop((place.execution_id, place.node), None)

    def are_lapsed(self, listed: Sequence[ExecutionId]) -> bool:
        """Tell whether `listed` are the overdue executions, oldest first, in any order of equals.

        What has expired may be among them until somebody asks for it.
        """
        listed = [execution_id for execution_id in listed if execution_id not in self._expired]
        lapsed = {
            execution_id: kept.lapses
            for execution_id, kept in self._kept.items()
            if kept.lapses is not None and kept.is_overdue(self._now)
        }
        times = [lapsed.get(execution_id, -1.0) for execution_id in listed]
        return set(listed) == set(lapsed) and len(listed) == len(lapsed) and times == sorted(times)

    def _access(self, execution_id: ExecutionId) -> _Kept | None:
        kept = self._kept.get(execution_id)
        if kept is not None:
            kept.accessed = self._now
        return kept

    def _writable(self, lease: Lease) -> _Kept | None:
        kept = self._kept.get(lease.execution_id)
        if kept is None or kept.execution.status is not ExecutionStatus.RUNNING or kept.token != lease.token:
            return None
        return kept

    def _write(self, kept: _Kept, drafts: Sequence[EventDraft], execution: Execution | None) -> None:
        for draft in drafts:
            seq = len(kept.events) + 1
            kept.events.append(OutputEvent(seq, draft.kind, draft.at, draft.data, draft.fields))
        if execution is not None:
            kept.execution = execution
            if execution.status is ExecutionStatus.PENDING:
                kept.begin_to_wait(self._now)
        kept.accessed = self._now
