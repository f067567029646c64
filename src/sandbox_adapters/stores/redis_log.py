"""RedisLog: appending to output logs exactly once, and reading pages of them."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sandbox_adapters.stores.codec import decode_event, decode_execution, encode_event, encode_execution
from sandbox_adapters.stores.redis_call import StoreCalls, Value, may_wait_ms, nonce
from sandbox_adapters.stores.redis_lua import TOUCHED_MS
from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, LeaseLost
from sandbox_core.domain.events import EventDraft, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.store import Lease, LogPage

LINE_OVERHEAD_BYTES: Final = 8 * 1024
"""What a page asks for beyond its bytes and a quarter, since lines are longer than the data in them. Asked again, it is
four times as much: short lines make many bytes of little data."""

_LARGEST_ASK_BYTES: Final = 2 << 20
"""One answer must fit the time that Redis has for it, on a slow network too."""
_MOST_WRITERS: Final = 100_000
_KEPT_BYTES: Final = 64 * 1024
_MOST_ENDED: Final = 64


@dataclass(slots=True)
class _Batch:
    """What was sent under one name and may or may not have arrived."""

    name: str
    drafts: list[EventDraft]
    execution: Execution | None


@dataclass(slots=True)
class _Writer:
    """One lease's end of a log: how long the log is, and the batch whose fate is not known."""

    seq: int
    unsure: _Batch | None = None
    kept: list[bytes] | None = None
    """The lines so far, of a log that is short."""
    kept_bytes: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A short log that this process wrote to its end, at a time of the monotonic clock. It never changes again."""

    at: float
    document: bytes
    lines: list[bytes]


class RedisLog:
    """The logs of one store. A batch that is sent again, since its answer was lost, keeps its name: it lands once.

    A short log that ended here a moment ago is read from memory: who waited for the end reads it at once, and it
    neither changes nor needs another touch.
    """

    def __init__(self, calls: StoreCalls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._written: Counter[ExecutionId] = Counter()
        self._ended: OrderedDict[ExecutionId, _Ended] = OrderedDict()
        self._writers: OrderedDict[tuple[ExecutionId, int], _Writer] = OrderedDict()

    def open(self, lease: Lease, seq: int) -> None:
        """Begin to write under a lease that was just given, to a log of `seq` events."""
        self._writers[lease.execution_id, lease.token] = _Writer(seq, kept=[] if seq == 0 else None)
        self._written[lease.execution_id] += 1
        while len(self._writers) > _MOST_WRITERS:
            self._forget(next(iter(self._writers)))

    def close(self, lease: Lease) -> None:
        """Forget a lease that writes no more."""
        self._forget((lease.execution_id, lease.token))

    def _forget(self, key: tuple[ExecutionId, int]) -> None:
        if self._writers.pop(key, None) is not None:
            self._written[key[0]] -= 1
            if not self._written[key[0]]:
                del self._written[key[0]]

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None) -> int:
        """Append, as the port says."""
        if execution is not None:
            if execution.id != lease.execution_id:
                raise InvalidArgument("execution", f"is {execution.id}, not {lease.execution_id}")
            execution.check_follows(ExecutionStatus.RUNNING)
        writer = self._writers.get((lease.execution_id, lease.token))
        if writer is None:
            self.open(lease, 0)
            writer = self._writers[lease.execution_id, lease.token]
        async with writer.turn:
            seq = await self._append(lease, writer, list(drafts), execution)
        if execution is not None and execution.status is not ExecutionStatus.RUNNING:
            self.close(lease)
        return seq

    async def _append(
        self, lease: Lease, writer: _Writer, drafts: list[EventDraft], execution: Execution | None
    ) -> int:
        batch = writer.unsure
        if batch is None or batch.drafts != drafts or batch.execution != execution:
            batch = writer.unsure = _Batch(nonce(), drafts, execution)
        document = b"" if execution is None else encode_execution(execution)
        status = "" if execution is None else execution.status.value
        if execution is not None and execution.status is ExecutionStatus.PENDING:
            status = f"{status} {may_wait_ms(execution)}"
        while True:
            lines = [encode_event(seq, draft) for seq, draft in enumerate(drafts, writer.seq + 1)]
            arguments: list[Value] = [lease.token, writer.seq, batch.name, document, status, *lines]
            try:
                answer = await self._calls.run_on(self._calls.scripts.append, lease.execution_id, *arguments)
            except ExecutionNotFound:
                answer = [b"LOST"]
            match answer:
                case [b"OK", int(seq)]:
                    self._keep(lease, writer, lines, seq, document if execution and execution.is_terminal else None)
                    writer.seq, writer.unsure = seq, None
                    return seq
                case [b"SEQ", int(seq)]:
                    writer.seq = seq
                case _:
                    self.close(lease)
                    raise LeaseLost(lease.execution_id)

    def _keep(self, lease: Lease, writer: _Writer, lines: list[bytes], seq: int, final: bytes | None) -> None:
        """Remember the lines of a short log; at its end, all of it for a moment."""
        if writer.kept is None:
            return
        writer.kept_bytes += sum(map(len, lines))
        if writer.kept_bytes > _KEPT_BYTES or seq != len(writer.kept) + len(lines):
            writer.kept = None
            return
        writer.kept += lines
        if final is not None:
            self._ended[lease.execution_id] = _Ended(self._clock.monotonic(), final, writer.kept)
            while len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)

    async def read(self, execution_id: ExecutionId, *, after: int, max_events: int, max_bytes: int) -> LogPage:
        """Return a page from the front."""
        return await self._page(execution_id, max(after, 0), max_events, max_bytes, backward=False)

    async def read_last(self, execution_id: ExecutionId, *, after: int, max_bytes: int) -> LogPage:
        """Return a page from the end."""
        return await self._page(execution_id, max(after, 0), 1 << 31, max_bytes, backward=True)

    def writes(self, execution_id: ExecutionId) -> bool:
        """Tell whether this process writes the log now."""
        return execution_id in self._written

    async def _page(
        self, execution_id: ExecutionId, after: int, max_events: int, max_bytes: int, *, backward: bool
    ) -> LogPage:
        """Ask until the page is full or the log, as it was at the first look, is at its end.

        How much data a line holds shows when it is decoded, so a page of short lines may take more than one look. Lines
        never change, so the looks together are of the first one's instant.
        """
        after = min(after, 1 << 53)
        ended = self._recently_ended(execution_id)
        if ended is not None:
            page = _Page(execution_id, ended.document, len(ended.lines), after, max_events, max_bytes, backward)
            lines = ended.lines[after:]
            page.take(reversed(lines) if backward else lines)
            return page.build()
        read, want = self._calls.scripts.read, max_bytes + max_bytes // 4 + LINE_OVERHEAD_BYTES
        answer = await self._calls.run_on(
            read, execution_id, *(after, max_events, min(want, _LARGEST_ASK_BYTES), int(backward), -1)
        )
        page = _Page(execution_id, answer[1], int(answer[2]), after, max_events, max_bytes, backward)
        while page.take(answer[3]):
            want *= 4
            answer = await self._calls.run_on(
                read,
                execution_id,
                *(page.low, page.room, min(want, _LARGEST_ASK_BYTES), int(backward), page.high),
            )
        return page.build()

    def _recently_ended(self, execution_id: ExecutionId) -> _Ended | None:
        ended = self._ended.get(execution_id)
        if ended is None or self._clock.monotonic() - ended.at > TOUCHED_MS / 1000:
            return None
        return ended


class _Page:
    """A page that fills from one end: `low` and `high` bound what of the log it still lacks."""

    def __init__(
        self, execution_id: ExecutionId, document: bytes, last_seq: int, after: int, max_events: int, max_bytes: int,
        backward: bool,
    ) -> None:  # fmt: skip
        self.execution = decode_execution(document, execution_id)
        self.last_seq = last_seq
        self.low, self.high = after, last_seq
        self.events: list[OutputEvent] = []
        self.taken = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._backward = backward

    @property
    def room(self) -> int:
        """How many events it may still take."""
        return self._max_events - len(self.events)

    def take(self, lines: Iterable[bytes]) -> bool:
        """Add lines; True when the log has more of them and the page has room."""
        some = False
        for line in lines:
            some = True
            seq = self.high if self._backward else self.low + 1
            event = decode_event(line, self.execution.id, seq)
            self.taken += len(event.data)
            if self.events and (self.taken > self._max_bytes or len(self.events) >= self._max_events):
                return False
            self.events.append(event)
            if self._backward:
                self.high -= 1
            else:
                self.low += 1
        return some and self.low < self.high and len(self.events) < self._max_events

    def build(self) -> LogPage:
        """Return it, in ascending order."""
        events = reversed(self.events) if self._backward else self.events
        return LogPage(self.execution, tuple(events), self.last_seq)
