"""Views as JSON objects: the structured content of our own reply style."""

from __future__ import annotations

import base64
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Literal

from sandbox_core.domain.events import EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import ResourceUsage
from sandbox_mcp.denials import denial_fields
from sandbox_mcp.views import CancelView, ExecutionView, InputView, ListView, ShownEvent, StatusView
from sandbox_mcp.words import duration_ms, how_to_read_on, raw_output, stream_text

Encoding = Literal["text", "base64"]
LISTED_COMMAND_CHARACTERS = 200


def execution_payload(view: ExecutionView, *, events: bool, encoding: Encoding) -> dict[str, Any]:
    """Return an execution with its output; with `events` also the events one by one."""
    payload = {
        **_state(view.execution),
        "stdout": _stream(view, EventKind.STDOUT, encoding),
        "stderr": _stream(view, EventKind.STDERR, encoding),
        "truncation": _truncation(view),
        "last_event_id": view.last_event_id,
        **measures(view.execution),
    }
    if view.is_page:
        payload["has_more"] = view.has_more
    if encoding != "text":
        payload["encoding"] = encoding
    if events:
        payload["output"] = [event_payload(item, encoding) for item in (*view.head, *view.tail)]
    return payload


def status_payload(view: StatusView) -> dict[str, Any]:
    """Return everything about an execution but its output."""
    execution = view.execution
    return {
        **_state(execution),
        "message": None if execution.outcome is None else execution.outcome.message,
        "last_event_id": view.last_event_id,
        **measures(execution),
        "command": command_json(execution),
        "session_id": execution.session_id,
        "retry_safe": execution.retry_safe,
        "labels": list(execution.labels),
        **times(execution),
        "policy": asdict(execution.policy),
    }


def list_payload(view: ListView) -> dict[str, Any]:
    """Return a page of executions, and the cursor that continues it."""
    entries = [
        {
            **_state(execution),
            "command": shortened(execution.command.text),
            "session_id": execution.session_id,
            **times(execution),
            "duration_ms": duration_ms(execution),
        }
        for execution in view.page.executions
    ]
    return {"executions": entries, "next_before": view.page.next_before}


def input_payload(view: InputView) -> dict[str, Any]:
    """Return what was sent."""
    return {"execution_id": view.execution_id, "success": True, "sent_bytes": view.sent_bytes, "end": view.end}


def cancel_payload(view: CancelView) -> dict[str, Any]:
    """Return whether it was running, and what it is now."""
    return {**_state(view.execution), "success": True, "was_running": view.was_running}


def event_payload(item: ShownEvent, encoding: Encoding = "text") -> dict[str, Any]:
    """Return one event: `type, data, ts, event_id` and its fields; `ts` is Unix time in seconds."""
    event = item.event
    payload: dict[str, Any] = {"type": event.kind.value}
    if event.kind.is_output and encoding == "base64":
        payload["data"] = base64.b64encode(event.data).decode("ascii")
    else:
        payload["data"] = event.data.decode("utf-8", "replace")
    payload["ts"] = event.at.timestamp()
    payload["event_id"] = item.event_id
    payload.update((name, value) for name, value in event.fields.items() if name != "offset")
    return payload


def measures(execution: Execution) -> dict[str, Any]:
    """Return what it took and used, what isolated it, and what it was refused."""
    return {
        "duration_ms": duration_ms(execution),
        "usage": None if execution.outcome is None else _usage(execution.outcome.usage),
        "isolation": None if execution.isolation is None else _fields(execution.isolation),
        **denial_fields(execution.outcome),
    }


def times(execution: Execution) -> dict[str, Any]:
    """Return when it was created, started and ended, in ISO 8601; null where it did not yet."""
    return {
        "created_at": _iso(execution.created_at),
        "started_at": _iso(execution.started_at),
        "ended_at": _iso(execution.ended_at),
    }


def command_json(execution: Execution) -> str | list[str]:
    """Return the command as it was given: shell text, or the list of arguments."""
    command = execution.command
    return command.shell if command.shell is not None else list(command.argv or ())


def shortened(text: str) -> str:
    """Return the first characters of a command, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= LISTED_COMMAND_CHARACTERS else line[: LISTED_COMMAND_CHARACTERS - 1] + "…"


def _state(execution: Execution) -> dict[str, Any]:
    outcome = execution.outcome
    return {
        "execution_id": execution.id,
        "status": execution.status.value,
        "exit_code": None if outcome is None else outcome.exit_code,
        "signal": None if outcome is None else outcome.signal,
        "termination_reason": None if outcome is None else outcome.reason.value,
        "attempt": execution.attempt,
    }


def _usage(usage: ResourceUsage) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in _fields(usage).items()}


def _fields(value: Isolation | ResourceUsage) -> dict[str, Any]:
    # Every reply has both: `asdict` would copy them deeply, at ten times the cost.
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _truncation(view: ExecutionView) -> dict[str, Any] | None:
    if not view.omitted_bytes and not view.dropped_bytes:
        return None
    return {
        "omitted_bytes": view.omitted_bytes,
        "dropped_bytes": view.dropped_bytes,
        "how": how_to_read_on(view) if view.omitted_bytes else "raise max_output_bytes in sandbox_config to keep more",
    }


def _stream(view: ExecutionView, kind: EventKind, encoding: Encoding) -> str:
    if encoding == "base64":
        return base64.b64encode(raw_output(view, kind)).decode("ascii")
    return stream_text(view, kind)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
