"""What the tools found, before it is put into words: a neutral value that both reply styles are built from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sandbox_adapters.capabilities import Capabilities
from sandbox_core.application.log_view import LogEnds
from sandbox_core.application.output_log import incomplete_suffix
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.events import MAX_EVENT_BYTES, EventKind, OutputEvent, parse_event_id
from sandbox_core.domain.execution import Execution
from sandbox_core.ports.store import ExecutionPage, LogPage

_PIECE = re.compile(r"([0-9]{1,18})\+([0-9]{1,9})")
_NOT_OURS = "must be the last_event_id of an earlier reply, for example '12'"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a log: after event `after`, and after `skip` bytes of the event that follows it.

    As text it is `12`, or `12+4096` inside an event that did not fit one reply.
    """

    after: int = 0
    skip: int = 0

    def __str__(self) -> str:
        return f"{self.after}+{self.skip}" if self.skip else str(self.after)


def parse_cursor(text: str | None) -> Cursor:
    """Turn a client's `last_event_id` into a cursor; None and "" mean from the start.

    Raises InvalidArgument when no reply can have contained it.
    """
    piece = _PIECE.fullmatch(text or "")
    if piece is None:
        return Cursor(parse_event_id(text))
    cursor = Cursor(int(piece[1]), int(piece[2]))
    if cursor.skip >= MAX_EVENT_BYTES:
        # What is skipped is read first: a longer way than any event is would bring a whole log into memory.
        raise InvalidArgument("last_event_id", _NOT_OURS)
    return cursor


@dataclass(frozen=True, slots=True)
class ShownEvent:
    """An event, or the piece of one that a reply has room for. `event_id` resumes after it."""

    event_id: str
    event: OutputEvent


@dataclass(frozen=True, slots=True)
class ExecutionView:
    """An execution with output: all of it, both ends of it, or a page of it.

    Args:
        head: events from the cursor on.
        tail: the newest events when the middle is left out, else empty.
        omitted_bytes: output in the log between head and tail.
        resume_at: cursor that reads the left-out part.
        last_event_id: cursor after everything shown.
        has_more: whether the log has events after `last_event_id` already.
        is_page: True for a page, whose output must join to the next page without anything in between.
        start: where a page begins.
    """

    execution: Execution
    head: tuple[ShownEvent, ...] = ()
    tail: tuple[ShownEvent, ...] = ()
    omitted_bytes: int = 0
    resume_at: str | None = None
    last_event_id: str | None = None
    has_more: bool = False
    is_page: bool = False
    start: Cursor = Cursor()

    @property
    def output_bytes(self) -> int:
        """Output in this view, bytes."""
        return sum(len(item.event.data) for item in (*self.head, *self.tail) if item.event.kind.is_output)

    @property
    def dropped_bytes(self) -> int:
        """Output that was printed past the execution's output limit and is not in its log."""
        if self.execution.outcome is not None:
            return self.execution.outcome.usage.dropped_bytes
        dropped = (item.event for item in (*self.head, *self.tail) if item.event.kind is EventKind.TRUNCATED)
        return sum(int(event.fields.get("dropped_bytes") or 0) for event in dropped)


@dataclass(frozen=True, slots=True)
class StatusView:
    """An execution without its output. `last_event_id` is the newest event's."""

    execution: Execution
    last_event_id: str


@dataclass(frozen=True, slots=True)
class ListView:
    """A page of executions."""

    page: ExecutionPage


@dataclass(frozen=True, slots=True)
class InputView:
    """Input was accepted."""

    execution_id: str
    sent_bytes: int
    end: bool


@dataclass(frozen=True, slots=True)
class CancelView:
    """A cancellation was passed on. `execution` is as it was shortly after."""

    execution: Execution
    was_running: bool


@dataclass(frozen=True, slots=True)
class CapabilitiesView:
    """What the server can enforce."""

    capabilities: Capabilities


View = ExecutionView | StatusView | ListView | InputView | CancelView | CapabilitiesView


def view_of_ends(ends: LogEnds) -> ExecutionView:
    """Return the view of a whole log, its middle left out when it is too long."""
    resume_at = None if ends.resume_after is None else str(Cursor(ends.resume_after, ends.resume_skip))
    head = [ShownEvent(event.event_id, event) for event in ends.head]
    if resume_at is not None and ends.resume_skip:
        head[-1] = ShownEvent(resume_at, ends.head[-1])
    return ExecutionView(
        execution=ends.execution,
        head=tuple(head),
        tail=tuple(ShownEvent(event.event_id, event) for event in ends.tail),
        omitted_bytes=ends.omitted_bytes,
        resume_at=resume_at,
        last_event_id=str(ends.last_seq),
    )


def view_of_page(page: LogPage, start: Cursor, max_bytes: int) -> ExecutionView:
    """Return a page that begins at `start` and holds at most `max_bytes` of output (one character at least).

    `page` must have been read after `start.after` with room for `max_bytes + start.skip`.
    """
    shown: list[ShownEvent] = []
    last = start
    for event in page.events:
        skipped = start.skip if event.seq == start.after + 1 else 0
        if skipped > len(event.data):
            raise InvalidArgument("last_event_id", _NOT_OURS)
        data = event.data[skipped:] if skipped else event.data
        if event.kind.is_output and len(data) > max_bytes:
            cut = _cut(data, max_bytes)
            last = Cursor(event.seq - 1, skipped + cut)
            shown.append(ShownEvent(str(last), replace(event, data=data[:cut])))
            break
        last = Cursor(event.seq)
        shown.append(ShownEvent(str(last), replace(event, data=data) if skipped else event))
    return ExecutionView(
        execution=page.execution,
        head=tuple(shown),
        last_event_id=str(last),
        has_more=last.after < page.last_seq,
        is_page=True,
        start=start,
    )


def _cut(data: bytes, max_bytes: int) -> int:
    """Return where to cut `data` so that a piece of at most `max_bytes` ends with a whole character."""
    cut = max_bytes - incomplete_suffix(data[:max_bytes])
    size = max_bytes
    while cut == 0:
        size += 1
        cut = size - incomplete_suffix(data[:size])
    return cut
