"""The reply style of the guide's server (`srt-mcp-server`): plain objects, the same as JSON text, events included.

Its fields keep their names and meaning; ours stand beside them. A failure is `{error, status: "failed"}` in an
ordinary result, as its callers expect, and carries our `code`.
"""

from __future__ import annotations

import json
from typing import Any, assert_never

from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp.capabilities import capabilities_payload
from sandbox_mcp.payloads import command_json, event_payload, times
from sandbox_mcp.replies import ToolResult, Wishes, tool_result
from sandbox_mcp.views import (
    CancelView,
    CapabilitiesView,
    ExecutionView,
    InputView,
    ListView,
    ShownEvent,
    StatusView,
    View,
)


class GuideReplies:
    """Builds results in the guide's shape. Its callers know no paging, so the server gives them the largest replies."""

    def reply(self, tool: str, view: View, wishes: Wishes) -> ToolResult:
        """Return the view as one object."""
        match view:
            case ExecutionView():
                return _result(_execution(tool, view, wishes))
            case StatusView():
                return _result(_info(view.execution))
            case ListView():
                entries = [_info(execution) for execution in view.page.executions]
                return tool_result(json.dumps(entries), {"result": entries})
            case InputView():
                return _result({"success": True, "execution_id": view.execution_id})
            case CancelView():
                state = {"execution_id": view.execution.id, "status": _status(view.execution)}
                return _result({"success": True, "was_running": view.was_running, **state})
            case CapabilitiesView():
                return _result(capabilities_payload(view.capabilities))
            case _:
                assert_never(view)

    def failure(self, tool: str, fields: dict[str, Any]) -> ToolResult:
        """Return the failure as an ordinary result."""
        said: dict[str, Any] = {"error": fields["message"], "code": fields["code"]}
        if "retry_after_seconds" in fields:
            said["retry_after_seconds"] = fields["retry_after_seconds"]
        if tool in {"send_stdin", "cancel_execution"}:
            return _result({"success": False, **said})
        return _result({**said, "status": "failed"})


def _execution(tool: str, view: ExecutionView, wishes: Wishes) -> dict[str, Any]:
    execution = view.execution
    said: dict[str, Any] = {"execution_id": execution.id, "status": _status(execution)}
    if tool == "execute_code_async":
        return said
    if not execution.is_terminal and tool == "execute_code":
        said["message"] = (
            f"Execution is running. Read its output with get_execution_output(execution_id='{execution.id}')."
        )
    else:
        said["exit_code"] = None if execution.outcome is None else execution.outcome.exit_code
    if tool == "get_execution_output" or execution.is_terminal or view.head:
        gap = _gap(view)
        said["output"] = [_event(item, wishes) for item in (*view.head, *gap, *view.tail)]
        said["last_event_id"] = view.last_event_id
        if view.is_page:
            said["has_more"] = view.has_more
    return said


def _event(item: ShownEvent, wishes: Wishes) -> dict[str, Any]:
    payload = event_payload(item, wishes.encoding)
    match item.event.kind:
        case EventKind.EXIT:
            payload["code"] = payload.get("exit_code")
        case EventKind.ERROR:
            payload["message"] = payload["data"]
        case EventKind.RESOURCE_LIMIT:
            payload["reason"] = payload["data"]
        case _:
            pass
    return payload


def _gap(view: ExecutionView) -> tuple[ShownEvent, ...]:
    """Return one event that says what is left out between the ends of a log."""
    if not view.omitted_bytes or not view.head:
        return ()
    last = view.head[-1]
    text = f"{view.omitted_bytes} bytes are left out here; read them with last_event_id {view.resume_at}."
    event = OutputEvent(
        last.event.seq, EventKind.TRUNCATED, last.event.at, text.encode(), {"omitted_bytes": view.omitted_bytes}
    )
    return (ShownEvent(last.event_id, event),)


def _info(execution: Execution) -> dict[str, Any]:
    outcome = execution.outcome
    return {
        "id": execution.id,
        "execution_id": execution.id,
        "status": _status(execution),
        "command": command_json(execution),
        "session_id": execution.session_id,
        "interactive": execution.command.interactive,
        **times(execution),
        "exit_code": None if outcome is None else outcome.exit_code,
        "error": None if outcome is None else outcome.message,
        "attempt": execution.attempt,
    }


def _status(execution: Execution) -> str:
    """Return the status as the guide's callers know it: they poll while it is `running` and know no `pending`."""
    return "running" if execution.status is ExecutionStatus.PENDING else execution.status.value


def _result(payload: dict[str, Any]) -> ToolResult:
    return tool_result(json.dumps(payload, ensure_ascii=False), payload)
