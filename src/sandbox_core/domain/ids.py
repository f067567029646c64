"""Identifiers and how callers' text becomes one of them. Nothing else."""

from __future__ import annotations

import re
import secrets
import uuid
from datetime import datetime
from typing import NewType

from sandbox_core.domain.errors import InvalidArgument

ExecutionId = NewType("ExecutionId", str)
"""A UUID of version 7 (RFC 9562, section 5.7) in lower case: unguessable, and its text sorts by creation time."""

SessionId = NewType("SessionId", str)
"""A grouping handle inside one principal, 1 to 128 characters of `A-Z a-z 0-9 . _ : -`. Grants nothing."""

Principal = NewType("Principal", str)
"""The authenticated caller, 1 to 128 characters of `A-Z a-z 0-9 . _ @ : -`."""

NodeId = NewType("NodeId", str)
"""One process that runs executions."""

LOCAL_PRINCIPAL = Principal("local")
"""The caller on stdio, on an unauthenticated loopback server, and in a library that names no other."""

_EXECUTION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9._@:-]{1,128}")


IdempotencyKey = NewType("IdempotencyKey", str)
"""A caller's name for one request, 1 to 128 characters of `A-Z a-z 0-9 . _ : -`, unique inside one principal."""


def new_execution_id(created_at: datetime) -> ExecutionId:
    """Return a fresh id whose text sorts after every id made in an earlier millisecond."""
    milliseconds = int(created_at.timestamp() * 1000) & ((1 << 48) - 1)
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return ExecutionId(str(uuid.UUID(int=value)))


def new_node_id(host: str) -> NodeId:
    """Return a node id that no other process has had, `host` first so that people can tell nodes apart."""
    return NodeId(f"{host}-{secrets.token_hex(4)}")


def parse_execution_id(text: str) -> ExecutionId:
    """Check a caller's text; raises InvalidArgument when it cannot be an execution id."""
    if not _fits(_EXECUTION_ID, text):
        raise InvalidArgument("execution_id", "must be an id as execute_code returned it (36 characters, 8-4-4-4-12)")
    return ExecutionId(text)


def parse_list_position(text: str) -> ExecutionId:
    """Check a caller's `before`; raises InvalidArgument when no page of a list can have named it as the next."""
    if not _fits(_EXECUTION_ID, text):
        raise InvalidArgument("before", "must be the next_before of an earlier reply")
    return ExecutionId(text)


def parse_session_id(text: str) -> SessionId:
    """Check a caller's text; raises InvalidArgument when it cannot be a session handle."""
    if not _fits(_SESSION_ID, text):
        raise InvalidArgument("session_id", "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return SessionId(text)


def parse_idempotency_key(text: str) -> IdempotencyKey:
    """Check a caller's text; raises InvalidArgument when it cannot be a key."""
    if not _fits(_IDEMPOTENCY_KEY, text):
        raise InvalidArgument("idempotency_key", "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -, e.g. a UUID")
    return IdempotencyKey(text)


def parse_principal(text: str) -> Principal:
    """Check an operator's or verifier's text; raises InvalidArgument when it cannot name a principal."""
    if not _fits(_PRINCIPAL, text):
        raise InvalidArgument("principal", "must be 1 to 128 characters of A-Z a-z 0-9 . _ @ : -")
    return Principal(text)


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
