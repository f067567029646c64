"""Output and endings as text for people and models."""

from __future__ import annotations

import signal
from datetime import UTC, datetime

from sandbox_core.application.endings import CANCELLED_ON_REQUEST
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp.denials import denials_line
from sandbox_mcp.views import ExecutionView, ShownEvent

STDERR_MARK = "[stderr]"


def raw_output(view: ExecutionView, kind: EventKind) -> bytes:
    """Return what the view holds of one stream, as bytes."""
    return b"".join(item.event.data for item in (*view.head, *view.tail) if item.event.kind is kind)


def stream_text(view: ExecutionView, kind: EventKind) -> str:
    """Return what the view holds of one stream; invalid UTF-8 is replaced.

    Where output is left out a marker says so, except in pages, which must join to the next one.
    """
    if view.is_page:
        return raw_output(view, kind).decode("utf-8", "replace")
    head, tail = _decoded(view.head, kind), _decoded(view.tail, kind)
    if view.omitted_bytes and (head or tail):
        return f"{head}\n[... {view.omitted_bytes} bytes left out; {how_to_read_on(view)} ...]\n{tail}"
    return head + tail


def how_to_read_on(view: ExecutionView) -> str:
    """Return the call that reads what this view leaves out."""
    cursor = view.last_event_id if view.resume_at is None else view.resume_at
    return f'read on with get_execution_output(execution_id="{view.execution.id}", last_event_id="{cursor}")'


def shown_text(view: ExecutionView, stdout: str, stderr: str) -> str:
    """Return the text content of a reply: stdout, stderr under its mark, and how it ended."""
    parts = []
    if stdout:
        parts.append(stdout if stdout.endswith("\n") else stdout + "\n")
    if stderr:
        parts.append(f"{STDERR_MARK}\n{stderr}" if stderr.endswith("\n") else f"{STDERR_MARK}\n{stderr}\n")
    parts.append(ending_lines(view))
    return "".join(parts)


def ending_lines(view: ExecutionView) -> str:
    """Return the line on how it ended, and one on what it was refused when there is any."""
    return with_denials(ending_line(view), view.execution)


def with_denials(line: str, execution: Execution) -> str:
    """Return `line`, and below it what the execution was refused."""
    denials = denials_line(execution.outcome)
    return f"{line}\n{denials}" if denials else line


def ending_line(view: ExecutionView) -> str:
    """Return one line in brackets: how it ended, or how to go on."""
    said = state_words(view.execution)
    if view.has_more:
        said += f"; more output: {how_to_read_on(view)}"
    elif view.execution.status is ExecutionStatus.RUNNING:
        said += f" so far: {how_to_read_on(view)}"
    elif view.execution.status is ExecutionStatus.PENDING:
        said += f": {how_to_read_on(view)}"
    if view.dropped_bytes:
        said += f"; {view.dropped_bytes} bytes over max_output_bytes were dropped"
    return f"[{said}]"


def state_words(execution: Execution) -> str:
    """Return how an execution ended or where it is, in a few words."""
    took = duration_words(duration_ms(execution))
    outcome = execution.outcome
    if outcome is None:
        return _waiting_words(execution) if execution.status is ExecutionStatus.PENDING else f"running, {took}"
    message = (outcome.message or "").rstrip(".")
    match outcome.reason:
        case TerminationReason.EXITED:
            return f"exit {outcome.exit_code} in {took}"
        case TerminationReason.WALL_TIME | TerminationReason.IDLE_TIME:
            idle = f" ({message})" if outcome.reason is TerminationReason.IDLE_TIME and message else ""
            return f"timeout after {took}: killed{idle}"
        case TerminationReason.CANCELLED:
            if execution.started_at is not None:
                by_whom = "" if outcome.message in (None, CANCELLED_ON_REQUEST) else f": {message}"
                return f"cancelled after {took}{by_whom}"
            return "cancelled before it started" + (" again" if execution.attempt > 1 else "")
        case TerminationReason.SIGNALED:
            return f"{signal_words(outcome.signal)} after {took}, exit {outcome.exit_code}"
        case TerminationReason.SETUP_FAILED | TerminationReason.NEVER_STARTED | TerminationReason.LOST:
            return f"failed, {outcome.reason}: {message or 'no reason known'}"
        case _:
            ended = f"exit {outcome.exit_code}" if outcome.exit_code is not None else "killed"
            return f"{outcome.reason} limit after {took}, {ended}" + (f": {message}" if message else "")


def _waiting_words(execution: Execution) -> str:
    if execution.attempt == 1:
        return "accepted, not started yet"
    return f"its machine is gone, waits to be run again: attempt {execution.attempt}"


def signal_words(number: int | None) -> str:
    """Return `signal 9 (SIGKILL)`."""
    try:
        name = f" ({signal.Signals(number).name})" if number is not None else ""
    except ValueError:
        name = ""
    return f"signal {number}{name}"


def duration_ms(execution: Execution) -> float | None:
    """Return how long it ran, or has been running, in milliseconds; None before it started."""
    if execution.outcome is not None and execution.started_at is not None:
        return round(execution.outcome.usage.wall_seconds * 1000, 3)
    if execution.started_at is None:
        return None
    end = execution.ended_at or datetime.now(UTC)
    return max(0.0, round((end - execution.started_at).total_seconds() * 1000, 3))


def duration_words(milliseconds: float | None) -> str:
    """Return `120 ms`, or `1.2 s` from one second on."""
    value = milliseconds or 0.0
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def _decoded(events: tuple[ShownEvent, ...], kind: EventKind) -> str:
    """Decode one stream of events that follow each other, with a mark where some was dropped or another run began."""
    parts: list[str] = []
    run: list[bytes] = []
    for item in events:
        if item.event.kind is kind:
            run.append(item.event.data)
        elif item.event.kind is EventKind.TRUNCATED and run:
            parts.append(b"".join(run).decode("utf-8", "replace"))
            parts.append(f"\n[... {item.event.fields.get('dropped_bytes')} bytes dropped: over max_output_bytes ...]\n")
            run = []
        elif item.event.kind is EventKind.RETRY and run:
            parts.append(b"".join(run).decode("utf-8", "replace"))
            parts.append(f"\n[... its machine died; attempt {item.event.fields.get('attempt')} begins here ...]\n")
            run = []
    parts.append(b"".join(run).decode("utf-8", "replace"))
    return "".join(parts)
