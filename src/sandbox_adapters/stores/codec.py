"""How stored data is written: one JSON document per execution, one JSON line per event.

An execution is `{"v":3,"execution":{...}}` with the field names of the domain, nulls included. Older ones are still
read: version 2 had no `retry_safe`, `attempt`, `requeued_at`, `labels` and `queue_timeout_seconds`, version 1 also no
denials, no network usage, no `filesystem.allow_read` and no `isolation.require`.
An event is one line such as `{"v":1,"seq":2,"type":"stdout","ts":"2026-01-01T00:00:00+00:00","data":"ok\\n"}`.
Bytes are text where they are valid UTF-8, else base64 with `"encoding":"base64"` beside them, so nothing is lost.
Binary stdin is base64 as well, with `"stdin_encoding":"base64"` beside the execution; one that is then longer than a
stdin may be stands beside it as `stdin_base64`.
Fields of an event that are for programs stand under `fields`.

Decoding is strict: another version, an unknown or missing field or a wrong type is StoredDataCorrupt.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from typing_extensions import TypedDict

from sandbox_core.domain.command import MAX_STDIN_BYTES
from sandbox_core.domain.errors import InvalidArgument, StoredDataCorrupt
from sandbox_core.domain.events import EventDraft, EventKind, OutputEvent
from sandbox_core.domain.execution import Execution

VERSION: Final = 3
"""Of an execution's document."""

EVENT_VERSION: Final = 1


class _Document(TypedDict):
    v: Literal[1, 2, 3]
    stdin_encoding: NotRequired[Literal["base64"]]
    stdin_base64: NotRequired[str]
    execution: Execution


_DOCUMENT = TypeAdapter(_Document)
_KINDS = {kind.value: kind for kind in EventKind}
_EVENT_KEYS = frozenset({"v", "seq", "type", "ts", "data", "encoding", "fields"})
_FIELD_TYPES = frozenset({str, int, float, bool, type(None)})
_ESCAPED = bytes(range(32)) + b'"\\'
_LARGE_STDIN_BYTES = 64 * 1024
_ZONES = ("+00:00", "Z")


def encode_execution(execution: Execution) -> bytes:
    """Return the document of an execution, which `decode_execution` reads.

    Raises InvalidArgument for text that no JSON can hold (half a surrogate), and for values of another type.
    """
    document: _Document = {"v": VERSION, "execution": execution}
    if not _is_text(execution.command.stdin):
        encoded = b64encode(execution.command.stdin)
        if len(encoded) <= MAX_STDIN_BYTES:
            command = replace(execution.command, stdin=encoded)
            document = {"v": VERSION, "stdin_encoding": "base64", "execution": replace(execution, command=command)}
        else:
            command = replace(execution.command, stdin=b"")
            document = {
                "v": VERSION,
                "stdin_base64": encoded.decode(),
                "execution": replace(execution, command=command),
            }
    try:
        return _DOCUMENT.dump_json(document, warnings="error")
    except PydanticSerializationError:
        return _encode_unusual(document)


def _encode_unusual(document: _Document) -> bytes:
    """Return the document of an execution with some value of a type that is not the declared one, such as a list."""
    try:
        raw = _DOCUMENT.dump_json(document, warnings="none")
        # Stored, what cannot be read again would spoil every list that it is in.
        decode_execution(raw, document["execution"].id)
    except PydanticSerializationError as error:
        raise InvalidArgument("execution", f"cannot be written as JSON: {error}") from error
    except StoredDataCorrupt as error:
        raise InvalidArgument("execution", f"could not be read again: {error.problem}") from error
    return raw


def decode_execution(raw: bytes, execution_id: str) -> Execution:
    """Return the execution of a document stored under `execution_id`. Raises StoredDataCorrupt."""
    what = f"execution {execution_id}"
    try:
        document = _DOCUMENT.validate_json(raw, strict=True, extra="forbid")
        execution = document["execution"]
        if "stdin_encoding" in document:
            command = execution.command
            execution = replace(execution, command=replace(command, stdin=b64decode(command.stdin, validate=True)))
        elif "stdin_base64" in document:
            stdin = b64decode(document["stdin_base64"], validate=True)
            execution = replace(execution, command=replace(execution.command, stdin=stdin))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoredDataCorrupt(what, f"{place or 'document'}: {first['msg']}") from error
    except (InvalidArgument, ValueError) as error:
        raise StoredDataCorrupt(what, str(error)) from error
    if execution.id != execution_id:
        raise StoredDataCorrupt(what, f"it holds execution {execution.id}")
    return execution


def encode_event(seq: int, draft: EventDraft) -> bytes:
    """Return the line of an event, without a line end. Raises InvalidArgument for fields that no JSON can hold."""
    at = draft.at if draft.at.tzinfo is UTC else draft.at.astimezone(UTC)
    line: dict[str, Any] = {"v": EVENT_VERSION, "seq": seq, "type": draft.kind.value, "ts": at.isoformat(), "data": ""}
    try:
        line["data"] = draft.data.decode()
    except UnicodeDecodeError:
        line["data"] = b64encode(draft.data).decode()
        line["encoding"] = "base64"
    if draft.fields:
        line["fields"] = draft.fields
    try:
        return to_json(line)
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidArgument("fields", f"cannot be written as JSON: {error}") from error


def decode_event(raw: bytes, execution_id: str, seq: int) -> OutputEvent:
    """Return the event of a line stored as number `seq` of `execution_id`. Raises StoredDataCorrupt."""
    try:
        line = from_json(raw)
        if problem := _problem_of(line, seq):
            raise StoredDataCorrupt(f"event {seq} of execution {execution_id}", problem)
        at = datetime.fromisoformat(line["ts"])
        data = b64decode(line["data"], validate=True) if "encoding" in line else line["data"].encode()
        return OutputEvent(seq, _KINDS[line["type"]], at.astimezone(UTC), data, line.get("fields", {}))
    except KeyError as error:
        raise StoredDataCorrupt(f"event {seq} of execution {execution_id}", f"no or unknown {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise StoredDataCorrupt(f"event {seq} of execution {execution_id}", str(error)) from error


def _problem_of(line: Any, seq: int) -> str | None:
    """Return what is wrong with a decoded line, beyond what its parsers find out."""
    if type(line) is not dict:
        return "it is not an object"
    if line.get("v") is not EVENT_VERSION:
        return f"version {line.get('v')!r} is not known"
    if not line.keys() <= _EVENT_KEYS:
        return f"unknown fields {sorted(line.keys() - _EVENT_KEYS)}"
    if type(line["seq"]) is not int or line["seq"] != seq:
        return f"it is numbered {line['seq']!r}"
    if line.get("encoding", "base64") != "base64":
        return f"encoding {line['encoding']!r} is not known"
    if type(line["data"]) is not str or type(line["ts"]) is not str:
        return "data and ts must be text"
    if line["ts"].endswith(_ZONES):
        fields = line.get("fields")
        if fields is None or (type(fields) is dict and all(type(value) in _FIELD_TYPES for value in fields.values())):
            return None
        return "fields must be an object of text, numbers, booleans and nulls"
    return "ts is not in UTC"


def _is_text(data: bytes) -> bool:
    """True for what is kept as text: UTF-8, and little of it written as escapes, which take long to read."""
    if len(data) > _LARGE_STDIN_BYTES and len(data.translate(None, _ESCAPED)) < len(data) * 7 // 8:
        return False
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
