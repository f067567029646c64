"""BackRecord: what a back tells about itself, and how that is written."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pydantic import TypeAdapter, ValidationError

from sandbox_core.domain.errors import InvalidArgument, StoredDataCorrupt
from sandbox_core.domain.ids import NodeId
from sandbox_core.domain.labels import MAX_OFFERED, parse_labels

LONGEST_NAME: Final = 255
"""Characters of a node, a host, an engine or a version."""

_ODD = re.compile(r"[^A-Za-z0-9._:+-]")


@dataclass(frozen=True, slots=True)
class BackRecord:
    """What a back tells about itself. It holds no address and no secret.

    Args:
        node: the process; `host` is its machine's name.
        started_at: when it began to take work.
        labels: what it offers, sorted.
        concurrency: how many executions it runs at most; `busy` how many now.
        queue: the engine that it takes from, such as `redis`, or `local` for what its own server accepts.
        version: of this package.
        draining: it takes nothing new any more.
        heard_seconds_ago: how old this is.
    """

    node: NodeId
    host: str
    started_at: datetime
    labels: tuple[str, ...]
    concurrency: int
    busy: int
    queue: str
    version: str
    draining: bool
    heard_seconds_ago: float = 0.0


_RECORD = TypeAdapter(BackRecord)


def encode_record(record: BackRecord) -> bytes:
    """Return the record as one JSON object, every name in it plain and bounded."""
    plain = replace(
        record,
        node=NodeId(_plain(record.node)),
        host=_plain(record.host),
        queue=_plain(record.queue),
        version=_plain(record.version),
        heard_seconds_ago=0.0,
    )
    return _RECORD.dump_json(plain)


def decode_record(raw: bytes, heard_seconds_ago: float) -> BackRecord:
    """Return the record that was written. Raises StoredDataCorrupt for anything that `encode_record` cannot write."""
    try:
        record = _RECORD.validate_json(raw, strict=True, extra="forbid")
        labels = parse_labels(record.labels, most=MAX_OFFERED)
    except (ValidationError, InvalidArgument) as error:
        raise StoredDataCorrupt("what a worker tells about itself", "it cannot be read") from error
    if any(_plain(name) != name for name in (record.node, record.host, record.queue, record.version)):
        raise StoredDataCorrupt("what a worker tells about itself", "it has names that are none")
    if record.started_at.tzinfo is None:
        raise StoredDataCorrupt("what a worker tells about itself", "it has a time without a zone")
    return replace(record, labels=tuple(sorted(labels)), heard_seconds_ago=max(0.0, heard_seconds_ago))


def _plain(name: str) -> str:
    return _ODD.sub("-", name)[:LONGEST_NAME]


def record_fields(record: BackRecord) -> dict[str, object]:
    """Return the record for JSON: times in ISO 8601, UTC."""
    return {
        **asdict(record),
        "started_at": record.started_at.astimezone(UTC).isoformat(timespec="seconds"),
        "labels": list(record.labels),
        "heard_seconds_ago": round(record.heard_seconds_ago, 1),
    }
