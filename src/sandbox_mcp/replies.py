"""How a view becomes the result of a tool call. One class per reply style; ReplyStyle is what the tools need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from sandbox_core.domain.events import EventKind
from sandbox_mcp.capabilities import capabilities_payload, capabilities_text
from sandbox_mcp.payloads import (
    Encoding,
    cancel_payload,
    execution_payload,
    input_payload,
    list_payload,
    status_payload,
)
from sandbox_mcp.views import CancelView, CapabilitiesView, ExecutionView, InputView, ListView, StatusView, View
from sandbox_mcp.words import duration_ms, duration_words, ending_lines, shown_text, state_words, with_denials

ToolResult = dict[str, Any]
"""A CallToolResult as it goes over the wire (MCP, section Tools). A dict, since nulls must travel."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asked of the form of a reply."""

    events: bool = False
    text: bool = True
    encoding: Encoding = "text"


class ReplyStyle(Protocol):
    """Builds tool results."""

    def reply(self, tool: str, view: View, wishes: Wishes) -> ToolResult:
        """Return the result of a call that did what it was asked."""
        ...

    def failure(self, tool: str, fields: dict[str, Any]) -> ToolResult:
        """Return the result of a call that was refused or failed; `fields` as `failures.error_fields` gives them."""
        ...


class SandboxReplies:
    """Our own style: fields for programs beside text that is cheap for a model to read."""

    def reply(self, tool: str, view: View, wishes: Wishes) -> ToolResult:
        """Return the view as structured content and as text."""
        del tool
        match view:
            case ExecutionView():
                payload = execution_payload(view, events=wishes.events, encoding=wishes.encoding)
                return tool_result(_execution_text(view, payload, wishes), payload)
            case StatusView():
                line = f"[{state_words(view.execution)}; last_event_id {view.last_event_id}]"
                return tool_result(with_denials(line, view.execution), status_payload(view))
            case ListView():
                return tool_result(_list_text(view), list_payload(view))
            case CancelView():
                return tool_result(_cancel_text(view), cancel_payload(view))
            case InputView():
                closed = ", input closed" if view.end else ""
                return tool_result(f"[sent {view.sent_bytes} bytes{closed}]", input_payload(view))
            case CapabilitiesView():
                return tool_result(capabilities_text(view.capabilities), capabilities_payload(view.capabilities))
            case _:
                assert_never(view)

    def failure(self, tool: str, fields: dict[str, Any]) -> ToolResult:
        """Return a tool error: the message as text, everything as fields."""
        del tool
        return tool_result(f"{fields['code']}: {fields['message']}", {"error": fields}, is_error=True)


def tool_result(text: str, structured: dict[str, Any], *, is_error: bool = False) -> ToolResult:
    """Return a tool result with one text block."""
    return {
        "content": [{"type": "text", "text": text}],
        "structuredContent": structured,
        "isError": is_error,
        "resultType": "complete",
    }


def _execution_text(view: ExecutionView, payload: dict[str, Any], wishes: Wishes) -> str:
    if not wishes.text:
        return ending_lines(view)
    return shown_text(view, payload[EventKind.STDOUT.value], payload[EventKind.STDERR.value])


def _list_text(view: ListView) -> str:
    lines = []
    for execution in view.page.executions:
        outcome = execution.outcome
        exit_code = "" if outcome is None or outcome.exit_code is None else f" exit {outcome.exit_code}"
        took = duration_ms(execution)
        spent = "" if took is None else f" {duration_words(took)}"
        lines.append(f"{execution.id} {execution.status.value}{exit_code}{spent}: {execution.command.text[:80]!r}")
    if view.page.next_before is not None:
        lines.append(f'[more: list_executions(before="{view.page.next_before}")]')
    return "\n".join(lines) or "[no executions]"


def _cancel_text(view: CancelView) -> str:
    if not view.was_running:
        return f"[had already ended: {state_words(view.execution)}]"
    if view.execution.is_terminal:
        return f"[{state_words(view.execution)}]"
    return "[asked to end; still ending]"
