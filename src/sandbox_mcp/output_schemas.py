"""The published output schemas. Written by hand, since they are a promise; tests hold every reply to them.

A reply is either the result or `{error: …}`: some clients check the structured content of errors as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sandbox_core.domain.denial import DenialKind
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.status import ExecutionStatus

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_INT_OR_NULL: Final[Schema] = {"type": ["integer", "null"]}
_NUMBER_OR_NULL: Final[Schema] = {"type": ["number", "null"]}
_INT: Final[Schema] = {"type": "integer"}
_NUMBER: Final[Schema] = {"type": "number"}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}
_TEXT_BY_NAME: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}
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
    "attempt": {"type": "integer"},
}
_DENIALS: Final[Schema] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": [kind.value for kind in DenialKind]},
            "target": _TEXT,
            "rule": _TEXT,
            "message": _TEXT,
            "count": _INT,
        },
        "required": ["kind", "target", "rule", "message", "count"],
    },
}
_MEASURES: Final[Mapping[str, Schema]] = {
    "duration_ms": _NUMBER_OR_NULL,
    "usage": {"type": ["object", "null"], "description": "Fields as get_execution_status has them."},
    "isolation": {"type": ["object", "null"], "description": "Fields as get_execution_status has them."},
    "denials": _DENIALS,
}
"""Without the fields of each: SDK clients check every result, and these would cost them 0.3 ms each time."""

_FULL_MEASURES: Final[Mapping[str, Schema]] = {
    "duration_ms": _NUMBER_OR_NULL,
    "usage": {
        "type": ["object", "null"],
        "properties": {
            "wall_seconds": _NUMBER,
            "user_cpu_seconds": _NUMBER_OR_NULL,
            "system_cpu_seconds": _NUMBER_OR_NULL,
            "queued_seconds": _NUMBER,
            "setup_seconds": _NUMBER,
            "max_rss_bytes": _INT_OR_NULL,
            "peak_memory_bytes": _INT_OR_NULL,
            "peak_processes": _INT_OR_NULL,
            "processes_left": _INT_OR_NULL,
            "stdout_bytes": _INT,
            "stderr_bytes": _INT,
            "dropped_bytes": _INT,
            "network_sent_bytes": _INT_OR_NULL,
            "network_received_bytes": _INT_OR_NULL,
        },
    },
    "isolation": {
        "type": ["object", "null"],
        "properties": {
            "runner": _TEXT,
            "version": _TEXT,
            "isolated": _FLAG,
            "network": _TEXT,
            "kernel_uid": _INT_OR_NULL,
            "layers": _TEXTS,
            "limits": _TEXT_BY_NAME,
            "facts": _TEXT_BY_NAME,
        },
    },
    "denials": _DENIALS,
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
        "denials_omitted": _INT,
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
        **_FULL_MEASURES,
        "command": {"type": ["string", "array"], "items": _TEXT},
        "session_id": _TEXT_OR_NULL,
        "retry_safe": _FLAG,
        "labels": _TEXTS,
        **_TIMES,
        "policy": {"type": "object"},
    },
    {"denials_omitted": _INT},
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
CAPABILITIES: Final = _reply(
    {
        "server_version": _TEXT,
        "runner": _TEXT,
        "runner_version": _TEXT,
        "isolated": _FLAG,
        "network": _TEXT,
        "layers": _TEXTS,
        "facts": _TEXT_BY_NAME,
        "limits": _TEXT_BY_NAME,
        "labels": _TEXTS,
        "network_grants": _FLAG,
        "filesystem_grants": _FLAG,
        "interception": _FLAG,
        "ceiling": {"type": "object"},
        "defaults": {"type": "object"},
    }
)
GUIDE: Final[Schema] = {"type": "object"}
"""What the guide's server publishes for every tool: an object."""
