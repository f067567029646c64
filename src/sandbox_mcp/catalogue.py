"""The tools as clients see them: names, descriptions, schemas, annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mcp_types as types

from sandbox_mcp import output_schemas
from sandbox_mcp.arguments import (
    Arguments,
    CancelArguments,
    CapabilitiesArguments,
    ExecuteArguments,
    ExecuteAsyncArguments,
    ListArguments,
    OutputArguments,
    SendStdinArguments,
    StatusArguments,
)
from sandbox_mcp.validation import input_schema

INSTRUCTIONS = """\
Runs commands in isolated, short-lived sandboxes: no network unless granted, an empty private workspace, a read-only \
system. Every command starts afresh, so put steps that share files into one command (`&&`, a here-document, or stdin \
to `python3 -`).
execute_code waits and returns the output. A non-zero exit or a timeout is a result, not an error. For long programs \
give yield_seconds, or start with execute_code_async, and read on with get_execution_output and the last_event_id of \
the reply before. Long output is cut in the middle; the reply says how to read the rest. What was refused, and by \
which rule, is in `denials`; get_capabilities tells what sandbox_config may ask for."""

_READS = types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
_RUNS = types.ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
_FEEDS = types.ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False
)
_ENDS = types.ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    title: str
    description: str
    arguments: type[Arguments]
    output: dict[str, Any]
    annotations: types.ToolAnnotations


_ENTRIES = (
    _Entry(
        "execute_code",
        "Run a command",
        "Run a shell command or program in a fresh sandbox and wait for its end. Returns stdout, stderr and how it "
        "ended. wait_for_completion=false or yield_seconds returns earlier; it runs on.",
        ExecuteArguments,
        output_schemas.EXECUTION,
        _RUNS,
    ),
    _Entry(
        "execute_code_async",
        "Start a command",
        "Start a command and return its execution_id at once. It runs on whatever happens to this connection; read it "
        "with get_execution_output.",
        ExecuteAsyncArguments,
        output_schemas.EXECUTION,
        _RUNS,
    ),
    _Entry(
        "get_execution_output",
        "Read output",
        "Return the output of an execution after last_event_id, oldest first, and its status. Call again with the "
        "returned last_event_id while has_more is true or it is running; wait_seconds waits for more.",
        OutputArguments,
        output_schemas.EXECUTION,
        _READS,
    ),
    _Entry(
        "get_execution_status",
        "Look at an execution",
        "Return status, times, limits, resource usage and isolation of an execution, without its output.",
        StatusArguments,
        output_schemas.STATUS,
        _READS,
    ),
    _Entry(
        "list_executions",
        "List executions",
        "List your executions, newest first.",
        ListArguments,
        output_schemas.EXECUTIONS,
        _READS,
    ),
    _Entry(
        "send_stdin",
        "Send input",
        "Send a line to the standard input of a running execution that was started with interactive=true.",
        SendStdinArguments,
        output_schemas.INPUT,
        _FEEDS,
    ),
    _Entry(
        "cancel_execution",
        "End an execution",
        "End an execution. Returns was_running: false when it had already ended.",
        CancelArguments,
        output_schemas.CANCEL,
        _ENDS,
    ),
    _Entry(
        "get_capabilities",
        "What can be enforced",
        "Return what this server enforces around every execution, and what sandbox_config may ask for: isolation "
        "layers, what holds each limit, possible grants, the ceiling and the defaults.",
        CapabilitiesArguments,
        output_schemas.CAPABILITIES,
        _READS,
    ),
)


def build_catalogue(
    *,
    default_timeout_seconds: float | None,
    largest_timeout_seconds: float | None,
    default_bytes: int,
    guide_replies: bool,
) -> list[types.Tool]:
    """Return the tools with the bounds of this server in their schemas."""
    return [
        types.Tool(
            name=entry.name,
            title=entry.title,
            description=entry.description,
            input_schema=_input(entry.arguments, default_timeout_seconds, largest_timeout_seconds, default_bytes),
            output_schema=output_schemas.GUIDE if guide_replies else entry.output,
            annotations=entry.annotations,
        )
        for entry in _ENTRIES
    ]


def _input(
    arguments: type[Arguments], default_timeout: float | None, largest_timeout: float | None, default_bytes: int
) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    maxima: dict[str, Any] = {}
    if "timeout_seconds" in arguments.model_fields:
        if default_timeout is not None:
            defaults["timeout_seconds"] = default_timeout
        if largest_timeout is not None:
            maxima["timeout_seconds"] = largest_timeout
    if "max_bytes" in arguments.model_fields:
        defaults["max_bytes"] = default_bytes
    return input_schema(arguments, defaults=defaults, maxima=maxima)
