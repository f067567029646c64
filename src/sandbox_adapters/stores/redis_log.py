"""RedisLog: appending to output logs exactly once, and reading pages of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sandbox_adapters.stores.codec import decode_event, decode_execution, encode_event, encode_execution
from sandbox_adapters.stores.redis_call import StoreCalls, Value, nonce
from sandbox_core.domain.errors import ExecutionNotFound, IllegalTransition, InvalidArgument, LeaseLost
from sandbox_core.domain.events import EventDraft, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import TRANSITIONS, ExecutionStatus
from sandbox_core.ports.store import Lease, LogPage

LINE_OVERHEAD_BYTES: Final = 64 * 1024
"""What a page asks for beyond its bytes: lines are longer than the data in them."""

_LARGEST_ASK_BYTES: Final = 8 << 20
_MOST_WRITERS: Final = 100_000


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
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class RedisLog:
    """The logs of one store. A batch that is sent again, since its answer was lost, keeps its name: it lands once."""

    def __init__(self, calls: StoreCalls) -> None:
        self._calls = calls
        self._writers: OrderedDict[tuple[ExecutionId, int], _Writer] = OrderedDict()

    def open(self, lease: Lease, seq: int) -> None:
        """Begin to write under a lease that was just given, to a log of `seq` events."""
        self._writers[lease.execution_id, lease.token] = _Writer(seq)
        while len(self._writers) > _MOST_WRITERS:
            self._writers.popitem(last=False)

    def close(self, lease: Lease) -> None:
        """Forget a lease that writes no more."""
        self._writers.pop((lease.execution_id, lease.token), None)

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None) -> int:
        """Append, as the port says."""
        if execution is not None:
            if execution.id != lease.execution_id:
                raise InvalidArgument("execution", f"is {execution.id}, not {lease.execution_id}")
            running = ExecutionStatus.RUNNING
            if execution.status is not running and execution.status not in TRANSITIONS[running]:
                raise IllegalTransition(execution.id, running, execution.status)
        writer = self._writers.get((lease.execution_id, lease.token))
        if writer is None:
            self.open(lease, 0)
            writer = self._writers[lease.execution_id, lease.token]
        async with writer.turn:
            seq = await self._append(lease, writer, list(drafts), execution)
        if execution is not None and execution.is_terminal:
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
        while True:
            lines = [encode_event(seq, draft) for seq, draft in enumerate(drafts, writer.seq + 1)]
            arguments: list[Value] = [lease.token, writer.seq, batch.name, document, status, *lines]
            try:
                answer = await self._calls.run_on(self._calls.scripts.append, lease.execution_id, *arguments)
            except ExecutionNotFound:
                answer = [b"LOST"]
            match answer:
                case [b"OK", int(seq)]:
                    writer.seq, writer.unsure = seq, None
                    return seq
                case [b"SEQ", int(seq)]:
                    writer.seq = seq
                case _:
                    self.close(lease)
                    raise LeaseLost(lease.execution_id)

    async def read(self, execution_id: ExecutionId, *, after: int, max_events: int, max_bytes: int) -> LogPage:
        """Return a page from the front."""
        return await self._page(execution_id, max(after, 0), max_events, max_bytes, backward=False)

    async def read_last(self, execution_id: ExecutionId, *, after: int, max_bytes: int) -> LogPage:
        """Return a page from the end."""
        return await self._page(execution_id, max(after, 0), 1 << 31, max_bytes, backward=True)

    async def _page(
        self, execution_id: ExecutionId, after: int, max_events: int, max_bytes: int, *, backward: bool
    ) -> LogPage:
        """Ask until the page is full or the log, as it was at the first look, is at its end.

        How much data a line holds shows when it is decoded, so a page of short lines may take more than one look. Lines
        never change, so the looks together are of the first one's instant.
        """
        execution: Execution | None = None
        events: list[OutputEvent] = []
        low, high, last_seq, taken = after, -1, 0, 0
        after = min(after, 1 << 53)
        while True:
            want = min(max_bytes - taken, _LARGEST_ASK_BYTES) + LINE_OVERHEAD_BYTES
            answer = await self._calls.run_on(
                self._calls.scripts.read,
                execution_id,
                *(min(low, 1 << 53), max_events - len(events), want, int(backward), high),
            )
            document, seen_seq, lines = answer[1], int(answer[2]), answer[3]
            if execution is None:
                execution, last_seq, high = decode_execution(document, execution_id), seen_seq, seen_seq
            for line in lines:
                seq = high if backward else low + 1
                event = decode_event(line, execution_id, seq)
                taken += len(event.data)
                if events and taken > max_bytes:
                    return _log_page(execution, events, last_seq, backward=backward)
                events.append(event)
                low, high = (low, high - 1) if backward else (low + 1, high)
            if low >= high or not lines or len(events) >= max_events:
                return _log_page(execution, events, last_seq, backward=backward)


def _log_page(execution: Execution, events: list[OutputEvent], last_seq: int, *, backward: bool) -> LogPage:
    return LogPage(execution, tuple(reversed(events) if backward else events), last_seq)
