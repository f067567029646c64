"""LogEnds: the first and the last of a log when it is too long to show whole. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sandbox_core.application.output_log import character_start, incomplete_suffix
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.ports.store import LogPage


@dataclass(frozen=True, slots=True)
class LogEnds:
    """A view of a log. The events at the cut are shortened, never inside a UTF-8 character.

    `tail` is empty when nothing had to be left out. `omitted_bytes` is output that is in the log between head and tail
    but not in this view: what follows event `resume_after` (None when nothing had to be left out), without the first
    `resume_skip` bytes of it, which `head` ends with.
    """

    execution: Execution
    head: tuple[OutputEvent, ...]
    tail: tuple[OutputEvent, ...]
    omitted_bytes: int
    last_seq: int
    resume_after: int | None = None
    resume_skip: int = 0


def cut_ends(first: LogPage, newest: LogPage | None, max_bytes: int) -> LogEnds:
    """Build the view from the oldest page and, when that did not reach the end, the newest one."""
    events = first.events if newest is None else _joined(first, newest)
    execution = first.execution if newest is None else newest.execution
    last_seq = first.last_seq if newest is None else newest.last_seq
    if events is not None and _output_bytes(events) <= max_bytes:
        return LogEnds(execution, tuple(events), (), 0, last_seq)
    source = first.events if events is None else events
    head = _head(source, max_bytes // 2)
    tail = _tail(newest.events if newest is not None else source, max_bytes - max_bytes // 2)
    omitted = _start(tail) - _end(head) - _dropped_between(head, tail, execution)
    resume_after, resume_skip = _end_in_log(head, source)
    return LogEnds(execution, head, tail, omitted, last_seq, resume_after, resume_skip)


def _joined(first: LogPage, newest: LogPage) -> tuple[OutputEvent, ...] | None:
    if not first.events or not newest.events or newest.events[0].seq > first.events[-1].seq + 1:
        return None
    return first.events + tuple(event for event in newest.events if event.seq > first.events[-1].seq)


def _head(events: tuple[OutputEvent, ...], budget: int) -> tuple[OutputEvent, ...]:
    kept: list[OutputEvent] = []
    for event in events:
        if event.kind.is_output:
            if len(event.data) > budget:
                if cut := budget - incomplete_suffix(event.data[:budget]):
                    kept.append(replace(event, data=event.data[:cut]))
                break
            budget -= len(event.data)
        kept.append(event)
    return tuple(kept)


def _end_in_log(head: tuple[OutputEvent, ...], events: tuple[OutputEvent, ...]) -> tuple[int, int]:
    """Return where `head`, which begins as `events` do, ends: after an event, and so many bytes of the next."""
    if not head:
        return events[0].seq - 1, 0
    last, whole = head[-1], events[len(head) - 1]
    return (last.seq, 0) if len(last.data) == len(whole.data) else (last.seq - 1, len(last.data))


def _tail(events: tuple[OutputEvent, ...], budget: int) -> tuple[OutputEvent, ...]:
    kept: list[OutputEvent] = []
    for event in reversed(events):
        if event.kind.is_output:
            if len(event.data) > budget:
                start = character_start(event.data, len(event.data) - budget)
                fields = {**event.fields, "offset": _offset(event) + start}
                kept.append(replace(event, data=event.data[start:], fields=fields))
                break
            budget -= len(event.data)
        kept.append(event)
    return tuple(reversed(kept))


def _dropped_between(head: tuple[OutputEvent, ...], tail: tuple[OutputEvent, ...], execution: Execution) -> int:
    """Return the bytes between head and tail that no log has: dropped ones count in the offsets of later events."""
    if execution.outcome is None or any(event.kind is EventKind.TRUNCATED for event in (*head, *tail)):
        return 0
    return execution.outcome.usage.dropped_bytes


def _output_bytes(events: tuple[OutputEvent, ...]) -> int:
    return sum(len(event.data) for event in events if event.kind.is_output)


def _offset(event: OutputEvent) -> int:
    offset = event.fields.get("offset", 0)
    return offset if isinstance(offset, int) else 0


def _start(events: tuple[OutputEvent, ...]) -> int:
    return next((_offset(event) for event in events if event.kind.is_output), 0)


def _end(events: tuple[OutputEvent, ...]) -> int:
    return next((_offset(event) + len(event.data) for event in reversed(events) if event.kind.is_output), 0)
