"""The published output schemas. Written by hand, since they are a promise; tests hold every reply to them.

A reply is either the result or `{error: …}`: some clients check the structured content of errors as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sandbox_core.domain.events import EventKind
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.status import ExecutionStatus

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_INT_OR_NULL: Final[Schema] = {"type": ["integer", "null"]}
_NUMBER_OR_NULL: Final[Schema] = {"type": ["number", "null"]}
_OBJECT_OR_NULL: Final[Schema] = {"type": ["object", "null"]}
_FLAG: Final[Schema] = {"type": "boolean"}

_ERROR: Final[Schema] = {
    "type": "object",
    "properties": {"code": _TEXT, "message": _TEXT, "retry_after_seconds": {"type": "number"}},
    "required": ["code", "message"],
}
_STATE: Final[Mapping[str, Schema]] = {
    "execution_id": _TEXT,
    "status": {"type": "string", "enum": [status.value for status in ExecutionStatus]},
    "exit_code": _INT_OR_NULL,
    "signal": _INT_OR_NULL,
    "termination_reason": {
        "type": ["string", "null"],
        "enum": [*(reason.value for reason in TerminationReason), None],
    },
}
_MEASURES: Final[Mapping[str, Schema]] = {
    "duration_ms": _NUMBER_OR_NULL,
    "usage": _OBJECT_OR_NULL,
    "isolation": _OBJECT_OR_NULL,
}
_TIMES: Final[Mapping[str, Schema]] = {"created_at": _TEXT, "started_at": _TEXT_OR_NULL, "ended_at": _TEXT_OR_NULL}
_EVENT: Final[Schema] = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": [kind.value for kind in EventKind]},
        "data": _TEXT,
        "ts": {"type": "number"},
        "event_id": _TEXT,
    },
    "required": ["type", "data", "ts", "event_id"],
}


def _reply(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {}), "error": _ERROR},
        "anyOf": [{"required": list(required)}, {"required": ["error"]}],
    }


EXECUTION: Final = _reply(
    {
        **_STATE,
        "stdout": _TEXT,
        "stderr": _TEXT,
        "truncation": {
            "type": ["object", "null"],
            "properties": {"omitted_bytes": {"type": "integer"}, "dropped_bytes": {"type": "integer"}, "how": _TEXT},
        },
        "last_event_id": _TEXT_OR_NULL,
        **_MEASURES,
    },
    {
        "has_more": _FLAG,
        "encoding": {"type": "string", "enum": ["base64"]},
        "output": {"type": "array", "items": _EVENT},
    },
)
STATUS: Final = _reply(
    {
        **_STATE,
        "message": _TEXT_OR_NULL,
        "last_event_id": _TEXT,
        **_MEASURES,
        "command": {"type": ["string", "array"], "items": _TEXT},
        "session_id": _TEXT_OR_NULL,
        **_TIMES,
        "policy": {"type": "object"},
    }
)
EXECUTIONS: Final = _reply(
    {
        "executions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    **_STATE,
                    "command": _TEXT,
                    "session_id": _TEXT_OR_NULL,
                    **_TIMES,
                    "duration_ms": _NUMBER_OR_NULL,
                },
                "required": ["execution_id", "status", "command", "created_at"],
            },
        },
        "next_before": _TEXT_OR_NULL,
    }
)
INPUT: Final = _reply({"execution_id": _TEXT, "success": _FLAG, "sent_bytes": {"type": "integer"}, "end": _FLAG})
CANCEL: Final = _reply({**_STATE, "success": _FLAG, "was_running": _FLAG})
GUIDE: Final[Schema] = {"type": "object"}
"""What the guide's server publishes for every tool: an object."""
