"""MemoryStateStore: the state of one process, as strict as a remote store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from typing import Self

import anyio
import anyio.lowlevel

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.stores.codec import decode_event, decode_execution, encode_event, encode_execution
from sandbox_adapters.stores.deadlines import Deadlines
from sandbox_adapters.stores.holdings import Holdings
from sandbox_adapters.stores.listing import Listing, first_page
from sandbox_adapters.stores.log import EventLog, MemoryBudget
from sandbox_adapters.stores.places import Places
from sandbox_adapters.stores.spill import SpillFile
from sandbox_core.domain.errors import (
    ClaimRefused,
    ExecutionNotFound,
    IllegalTransition,
    InvalidArgument,
    LeaseLost,
    StoreUnavailable,
)
from sandbox_core.domain.events import EventDraft, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.store import Claim, ExecutionPage, Lease, ListQuery, LogPage, Place, Quota, Scope

_KeyOf = tuple[Principal, str]


class _Record:
    """One execution as stored: the encoded document, what is indexed of it, its log, and who waits for it."""

    __slots__ = ("changed", "document", "ended", "id", "key", "log", "principal", "session_id", "status", "token",
                 "told", "touched")  # fmt: skip

    def __init__(self, execution: Execution, document: bytes, log: EventLog, key: _KeyOf | None) -> None:
        self.id = execution.id
        self.principal = execution.principal
        self.session_id = execution.session_id
        self.status = execution.status
        self.document = document
        self.log = log
        self.key = key
        self.token, self.touched = 0, 0.0
        self.told = False
        self.changed: anyio.Event | None = None
        self.ended: anyio.Event | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.document) + self.log.size_bytes


class MemoryStateStore:
    """StateStore in the memory of this process. Satisfies `StateStore`; use on one event loop.

    What is stored is encoded bytes, so nothing is shared with callers and corrupt data is noticed as it would be in a
    remote store. A log past `memory_per_log_bytes` goes to a nameless temporary file, so printing does not fill memory.

    Args:
        clock: where time comes from; the machine's when None.
        ttl_seconds: how long a pending or finished execution is kept after its last access.
        max_retained: how many executions are kept. Past it, finished ones go: of the principal that has most, least
            recently accessed first; pending and running ones never do.
        max_retained_mb: the same, for the MiB of all documents and logs, in memory and on disk.
        memory_per_log_bytes: how much of one log stays in memory.
        memory_mb: how many MiB of all logs together stay in memory.
        spill_directory: where the temporary file is made; None is the system's temporary directory. On a tmpfs what is
            spilled is still memory of the machine.

    As an async context manager it closes the temporary file on leaving; without, that happens with the object.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        ttl_seconds: float = 3600,
        max_retained: int = 50_000,
        max_retained_mb: int = 4096,
        memory_per_log_bytes: int = 256 * 1024,
        memory_mb: int = 256,
        spill_directory: str | None = None,
    ) -> None:
        self._clock = clock if clock is not None else SystemClock()
        self._ttl = ttl_seconds
        self._max_retained = max_retained
        self._max_bytes = max_retained_mb << 20
        self._memory_per_log = memory_per_log_bytes
        self._spill = SpillFile(spill_directory)
        self._budget = MemoryBudget(memory_mb << 20)
        self._records: dict[ExecutionId, _Record] = {}
        self._bytes = 0
        self._keys: dict[_KeyOf, ExecutionId] = {}
        self._listing = Listing()
        self._leases: Deadlines[str] = Deadlines()
        self._places = Places()
        # Least recently accessed first. Running executions are in neither.
        self._pending: OrderedDict[ExecutionId, _Record] = OrderedDict()
        self._finished: OrderedDict[ExecutionId, _Record] = OrderedDict()
        self._holdings = Holdings()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._spill.close()

    async def create(self, execution: Execution, *, idempotency_key: str | None = None) -> Execution:
        """Store a pending execution. Raises InvalidArgument for one that is not pending or whose id is taken."""
        self._expire()
        key = None if idempotency_key is None else (execution.principal, idempotency_key)
        if key is not None and key in self._keys:
            first = self._find(self._keys[key])
            first.told = True
            return self._decode(first)
        if execution.status is not ExecutionStatus.PENDING:
            raise InvalidArgument("status", f"is {execution.status}; only a pending execution can be created")
        if execution.id in self._records:
            raise InvalidArgument("execution_id", f"{execution.id} is taken")
        log = EventLog(self._spill, self._budget, self._memory_per_log)
        record = _Record(execution, encode_execution(execution), log, key)
        self._records[execution.id] = record
        self._bytes += record.size_bytes
        self._holdings.add(record.principal, record.size_bytes)
        if key is not None:
            self._keys[key] = execution.id
        self._listing.add(record.principal, record.session_id, record.status, record.id)
        self._await_claim(record, execution)
        self._touch(record)
        self._evict()
        return self._decode(record)

    async def discard(self, execution_id: ExecutionId) -> None:
        """Forget a pending execution."""
        self._expire()
        record = self._records.get(execution_id)
        if record is not None and record.status is ExecutionStatus.PENDING and not record.told:
            self._remove(record)

    async def load(self, execution_id: ExecutionId) -> Execution:
        """Return the execution as it is now."""
        return self._decode(self._find(execution_id))

    async def list_page(self, query: ListQuery) -> ExecutionPage:
        """Return a page, newest first. Listing is no access: it keeps nothing from expiring."""
        self._expire()
        statuses = query.statuses or frozenset(ExecutionStatus)
        ids = self._listing.newest_first(query.principal, query.session_id, statuses, query.before)
        sizes = ((execution_id, len(self._records[execution_id].document)) for execution_id in ids)
        page, last = first_page(sizes, max(query.limit, 1))
        return ExecutionPage(tuple(self._decode(self._records[execution_id]) for execution_id in page), last)

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Move pending to running for `node`, with a lease."""
        record = self._find(execution_id)
        if record.status is not ExecutionStatus.PENDING:
            raise ClaimRefused(execution_id, f"it is {record.status}")
        if self._is_overdue(record):
            raise ClaimRefused(execution_id, "its time in the queue is over")
        execution = self._decode(record)
        execution = execution.apply(execution.start(node, self._clock.now()))
        self._store(record, execution, ())
        return Claim(self._lease(record, node, lease_seconds), execution)

    async def seize(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Take over a running execution whose lease has lapsed."""
        record = self._find(execution_id)
        if record.status is not ExecutionStatus.RUNNING:
            raise ClaimRefused(execution_id, f"it is {record.status}")
        if not self._is_overdue(record):
            raise ClaimRefused(execution_id, "its lease still holds")
        execution = self._decode(record)
        return Claim(self._lease(record, node, lease_seconds), execution)

    async def renew(self, leases: Sequence[Lease], *, lease_seconds: float) -> Sequence[Lease]:
        """Extend leases and places; a lease that has lapsed but that nobody seized is extended too."""
        self._expire()
        now = self._clock.monotonic()
        deadline = now + lease_seconds
        expires_at = self._clock.now() + timedelta(seconds=lease_seconds)
        held = []
        for lease in leases:
            record = self._records.get(lease.execution_id)
            if record is None or record.status is not ExecutionStatus.RUNNING or record.token != lease.token:
                continue
            self._leases.set(record.id, deadline)
            self._places.extend(record.id, lease.node, now, deadline)
            held.append(Lease(record.id, lease.node, lease.token, expires_at))
        return held

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        """Append events and at most one state.

        Raises also IllegalTransition when the state cannot follow the stored one, InvalidArgument when the execution
        is not the lease's, StoreUnavailable when the disk is full; then nothing was written.
        """
        self._expire()
        record = self._records.get(lease.execution_id)
        if record is None or record.status is not ExecutionStatus.RUNNING or record.token != lease.token:
            raise LeaseLost(lease.execution_id)
        self._store(record, execution, drafts)
        return len(record.log)

    async def finish_unclaimed(
        self, execution: Execution, drafts: Sequence[EventDraft], *, only_overdue: bool = False
    ) -> None:
        """Store the terminal state of a pending execution. Raises also IllegalTransition when it is not terminal."""
        record = self._find(execution.id)
        if record.status is not ExecutionStatus.PENDING:
            raise ClaimRefused(execution.id, f"it is {record.status}")
        if only_overdue and not self._is_overdue(record):
            raise ClaimRefused(execution.id, "its time in the queue is not over")
        if not execution.is_terminal:
            raise IllegalTransition(execution.id, record.status, execution.status)
        self._store(record, execution, drafts)

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        """Return events over `after`, oldest first."""
        record = self._find(execution_id)
        events: list[OutputEvent] = []
        taken, seq = 0, max(after, 0)
        for line in islice(record.log.forward(seq + 1), max_events):
            seq += 1
            event = decode_event(line, execution_id, seq)
            taken += len(event.data)
            if events and taken > max_bytes:
                break
            events.append(event)
        return LogPage(self._decode(record), tuple(events), len(record.log))

    async def read_last(self, execution_id: ExecutionId, *, after: int = 0, max_bytes: int = 1 << 16) -> LogPage:
        """Return the newest events over `after`, in ascending order."""
        record = self._find(execution_id)
        events: list[OutputEvent] = []
        taken, seq = 0, len(record.log)
        for line in record.log.backward(max(after, 0)):
            event = decode_event(line, execution_id, seq)
            taken += len(event.data)
            if events and taken > max_bytes:
                break
            events.append(event)
            seq -= 1
        return LogPage(self._decode(record), tuple(reversed(events)), len(record.log))

    async def wait(self, execution_id: ExecutionId, *, after: int, until_terminal: bool = False) -> None:
        """Return when there is an event over `after`, or at the end. One that is removed meanwhile raises."""
        await anyio.lowlevel.checkpoint()
        while True:
            record = self._find(execution_id)
            if record.status.is_terminal or (not until_terminal and len(record.log) > after):
                return
            # No await between the look above and the wait below, so no wake-up falls between them.
            if until_terminal:
                event = record.ended = record.ended or anyio.Event()
            else:
                event = record.changed = record.changed or anyio.Event()
            await event.wait()

    async def reserve(self, place: Place, quota: Quota, *, lease_seconds: float) -> Scope | None:
        """Count one more place, or return the first full scope."""
        now = self._clock.monotonic()
        return self._places.reserve(place, quota, now, now + lease_seconds)

    async def release(self, place: Place) -> None:
        """Give a place back."""
        self._places.release(place)

    async def lapsed(self, *, limit: int = 100) -> Sequence[ExecutionId]:
        """Return what is overdue, oldest first."""
        return [ExecutionId(name) for name in self._leases.due(self._clock.monotonic(), limit)]

    async def ping(self) -> None:
        """Return: this store is always there."""

    def _find(self, execution_id: ExecutionId) -> _Record:
        self._expire()
        record = self._records.get(execution_id)
        if record is None:
            raise ExecutionNotFound(execution_id)
        self._touch(record)
        return record

    def _decode(self, record: _Record) -> Execution:
        return decode_execution(record.document, record.id)

    def _lease(self, record: _Record, node: NodeId, lease_seconds: float) -> Lease:
        record.token += 1
        self._leases.set(record.id, self._clock.monotonic() + lease_seconds)
        return Lease(record.id, node, record.token, self._clock.now() + timedelta(seconds=lease_seconds))

    def _store(self, record: _Record, execution: Execution | None, drafts: Sequence[EventDraft]) -> None:
        """Write a state and events, both or neither: everything that can fail comes before the first change."""
        document = record.document
        if execution is not None:
            if execution.id != record.id:
                raise InvalidArgument("execution", f"is {execution.id}, not {record.id}")
            execution.check_follows(record.status)
            document = encode_execution(execution)
        lines = [encode_event(seq, draft) for seq, draft in enumerate(drafts, len(record.log) + 1)]
        before = record.size_bytes
        if lines:
            try:
                record.log.append(lines)
            except OSError as error:
                raise StoreUnavailable(f"the log cannot be written to disk ({error.strerror})") from error
        record.document = document
        self._bytes += record.size_bytes - before
        self._holdings.grow(record.principal, record.size_bytes - before)
        if execution is not None and execution.status is not record.status:
            self._move(record, execution)
        self._touch(record)
        if record.changed is not None and (lines or record.status.is_terminal):
            record.changed.set()
            record.changed = None
        self._evict()

    def _is_overdue(self, record: _Record) -> bool:
        deadline = self._leases.get(record.id)
        return deadline is not None and deadline <= self._clock.monotonic()

    def _await_claim(self, record: _Record, execution: Execution) -> None:
        """Let a pending execution wait as long as its policy says: the queue has the lease of it, so to speak."""
        seconds = execution.policy.resource_limits.queue_timeout_seconds
        if seconds is None:
            self._leases.discard(record.id)
        else:
            self._leases.set(record.id, self._clock.monotonic() + seconds)

    def _move(self, record: _Record, execution: Execution) -> None:
        status = execution.status
        self._listing.remove(record.principal, record.session_id, record.status, record.id)
        self._listing.add(record.principal, record.session_id, status, record.id)
        self._pending.pop(record.id, None)
        record.status = status
        if status.is_terminal:
            self._leases.discard(record.id)
            if record.ended is not None:
                record.ended.set()
                record.ended = None
        elif status is ExecutionStatus.PENDING:
            self._await_claim(record, execution)

    def _touch(self, record: _Record) -> None:
        record.touched = self._clock.monotonic()
        if record.status is ExecutionStatus.RUNNING:
            return
        order = self._pending
        if record.status.is_terminal:
            order = self._finished
            self._holdings.touch(record.principal, record.id)
        order[record.id] = record
        order.move_to_end(record.id)

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for order in (self._pending, self._finished):
            while order:
                record = next(iter(order.values()))
                if record.touched + self._ttl > now:
                    break
                self._remove(record)

    def _evict(self) -> None:
        # The newest finished one stays whatever its size: its caller has not read it yet.
        while len(self._finished) > 1 and (len(self._records) > self._max_retained or self._bytes > self._max_bytes):
            going = self._holdings.first_to_go(
                spare=next(reversed(self._finished)), by_bytes=self._bytes > self._max_bytes
            )
            if going is None:
                return
            self._remove(self._records[going])

    def _remove(self, record: _Record) -> None:
        del self._records[record.id]
        self._leases.discard(record.id)
        self._pending.pop(record.id, None)
        self._finished.pop(record.id, None)
        if record.key is not None:
            del self._keys[record.key]
        self._listing.remove(record.principal, record.session_id, record.status, record.id)
        self._bytes -= record.size_bytes
        self._holdings.remove(record.principal, record.id, record.size_bytes)
        record.log.drop()
        for event in (record.changed, record.ended):
            if event is not None:
                event.set()
