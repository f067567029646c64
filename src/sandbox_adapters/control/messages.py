"""How control messages are written in Redis: JSON, version 1, checked when read.

A message is `{"v":1,"type":"cancel","force":false}` or `{"v":1,"type":"input","data":"<base64>","end":false}`. What is
pushed into a node's inbox is either a request, which names the message, or the answer to one.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sandbox_core.domain.command import MAX_STDIN_BYTES
from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlMessage, SendInput

VERSION: Final = 1
_TOKEN_PATTERN: Final = r"^[0-9a-f]{32}$"  # noqa: S105  # the form of a random name
_EXECUTION_PATTERN: Final = r"^[0-9a-f-]{36}$"

Token = Annotated[str, Field(pattern=_TOKEN_PATTERN)]
NodeName = Annotated[str, Field(min_length=1, max_length=300)]


class Request(TypedDict):
    """Told to an owner's node: there is a message for this execution."""

    v: Literal[1]
    type: Literal["request"]
    token: Token
    execution_id: Annotated[str, Field(pattern=_EXECUTION_PATTERN)]
    sender: NodeName


class Reply(TypedDict):
    """Told to a sender's node: this became of it; null when the owner's handler failed."""

    v: Literal[1]
    type: Literal["reply"]
    token: Token
    answer: ControlAnswer | None


class _CancelDocument(TypedDict):
    v: Literal[1]
    type: Literal["cancel"]
    force: bool


class _InputDocument(TypedDict):
    v: Literal[1]
    type: Literal["input"]
    data: Annotated[str, Field(max_length=MAX_STDIN_BYTES * 4 // 3 + 4)]
    end: bool


Entry = Request | Reply
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="type")])
_MESSAGE: TypeAdapter[_CancelDocument | _InputDocument] = TypeAdapter(
    Annotated[_CancelDocument | _InputDocument, Field(discriminator="type")]
)


def encode_entry(entry: Entry) -> bytes:
    """Return what is pushed into an inbox."""
    return _ENTRY.dump_json(entry)


def decode_entry(raw: bytes) -> Entry:
    """Return what was pushed into an inbox. Raises StoredDataCorrupt."""
    try:
        return _ENTRY.validate_json(raw, extra="forbid")
    except ValidationError as error:
        raise StoredDataCorrupt("an inbox entry", _problem(error)) from error


def encode_message(message: ControlMessage) -> bytes:
    """Return the document of a message."""
    match message:
        case Cancel():
            return _MESSAGE.dump_json({"v": VERSION, "type": "cancel", "force": message.force})
        case SendInput():
            data = b64encode(message.data).decode()
            return _MESSAGE.dump_json({"v": VERSION, "type": "input", "data": data, "end": message.end})


def decode_message(raw: bytes) -> ControlMessage:
    """Return the message of a document. Raises StoredDataCorrupt, also for input over 1 MiB."""
    try:
        document = _MESSAGE.validate_json(raw, extra="forbid")
        if document["type"] == "cancel":
            return Cancel(force=document["force"])
        return SendInput(data=b64decode(document["data"], validate=True), end=document["end"])
    except ValidationError as error:
        raise StoredDataCorrupt("a control message", _problem(error)) from error
    except ValueError as error:
        raise StoredDataCorrupt("a control message", str(error)) from error


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'document'}: {first['msg']}"
