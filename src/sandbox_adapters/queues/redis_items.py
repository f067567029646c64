"""How a QueueItem is written in Redis: one line of JSON, after the name of its lane."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sandbox_adapters.redis_connection import key_part
from sandbox_core.domain.errors import InvalidArgument, StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.domain.labels import parse_labels
from sandbox_core.ports.queue import QueueItem

VERSION = 1
_FIELDS = {"v", "execution_id", "principal", "session_id", "queued_at"}


def encode_item(item: QueueItem) -> str:
    """Return the item as it is stored, its lane first."""
    document: dict[str, Any] = {
        "v": VERSION,
        "execution_id": item.execution_id,
        "principal": item.principal,
        "session_id": item.session_id,
        "queued_at": item.queued_at.astimezone(UTC).isoformat(),  # so that texts sort as the times do
    }
    if item.labels:
        document["labels"] = item.labels
    return f"{lane_of(item)} {json.dumps(document, separators=(',', ':'))}"


def decode_item(raw: bytes, execution_id: bytes, lane: bytes) -> QueueItem:
    """Return the item of a line of JSON that is kept under this id in this lane. Raises StoredDataCorrupt."""
    try:
        item = _item(json.loads(raw))
        found = item.execution_id.encode(), lane_of(item).encode()
    except (ValueError, TypeError, KeyError, AttributeError, InvalidArgument) as error:
        raise StoredDataCorrupt("an item of the queue", f"it cannot be read: {error!r}") from error
    if found != (execution_id, lane):
        raise StoredDataCorrupt("an item of the queue", "it is another one than its key says")
    return item


def lane_of(item: QueueItem) -> str:
    """Return the name of the item's lane: one session of one principal, and the labels when there are any."""
    session = "" if item.session_id is None else f"={key_part(item.session_id)}"
    labels = f"|{','.join(item.labels)}" if item.labels else ""
    return f"{key_part(item.principal)}|{session}{labels}"


def _item(document: dict[str, Any]) -> QueueItem:
    if document.keys() - {"labels"} != _FIELDS or document["v"] != VERSION:
        raise ValueError("unknown fields or version")
    queued_at = datetime.fromisoformat(document["queued_at"])
    if queued_at.tzinfo is None:
        raise ValueError("a time without a zone")
    session_id, labels = document["session_id"], document.get("labels", [])
    if not isinstance(labels, list) or sorted(parse_labels(labels)) != labels:
        raise ValueError("labels that are none, or in no order")
    return QueueItem(
        execution_id=ExecutionId(document["execution_id"]),
        principal=Principal(document["principal"]),
        session_id=None if session_id is None else SessionId(session_id),
        queued_at=queued_at,
        labels=tuple(labels),
    )
