"""Errors as the fields that callers get: a stable code, a message that says what to do, and the facts."""

from __future__ import annotations

from typing import Any

from sandbox_core.domain.errors import (
    InputFull,
    InvalidArgument,
    OwnerUnreachable,
    PolicyRefused,
    SandboxError,
    ServerDraining,
    ServerFull,
    StoreUnavailable,
    Unservable,
)

_RETRY_SECONDS: dict[type[SandboxError], int] = {
    ServerDraining: 5,
    StoreUnavailable: 2,
    OwnerUnreachable: 5,
    InputFull: 1,
}
_FACTS = ("field", "execution_id", "status", "limit_bytes", "runner")


def error_fields(error: SandboxError) -> dict[str, Any]:
    """Return `code`, `message`, the error's facts, and `retry_after_seconds` where trying again helps."""
    fields: dict[str, Any] = {"code": error.code, "message": str(error)}
    for name in _FACTS:
        value = getattr(error, name, None)
        if value is not None:
            fields[name] = str(value) if isinstance(value, str) else value
    if isinstance(error, InvalidArgument):
        fields["problem"] = error.problem
    if isinstance(error, PolicyRefused):
        fields["violations"] = [
            {"field": item.field, "asked": item.asked, "limit": item.limit, "reason": item.reason}
            for item in error.violations
        ]
    if isinstance(error, Unservable):
        fields |= {"labels": list(error.labels), "offered": list(error.offered)}
    if isinstance(error, ServerFull):
        fields["retry_after_seconds"] = error.retry_after_seconds
    for kind, seconds in _RETRY_SECONDS.items():
        if isinstance(error, kind):
            fields["retry_after_seconds"] = seconds
    return fields


def internal_error_fields() -> dict[str, Any]:
    """Return what a caller is told about an error of the server's own; the log has the rest."""
    return {
        "code": "internal_error",
        "message": "The server failed while it answered. The execution, if there is one, is not affected. Try again.",
        "retry_after_seconds": 1,
    }
