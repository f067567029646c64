"""The two streams of JetStreamQueue, and what is asked of them. `{base}` is `sandbox`, or `sandbox-` and the prefix.

| stream | subject of a message | what |
| --- | --- | --- |
| `{base}_waiting`, disk | `{base}.waiting.{principal}.{session}.{labels}.{execution id}` | an item, until it is done |
| `{base}_held`, memory | `{base}.held.{principal}.{execution id}` | a taker asks about the item, or has it |

A mark in `held` goes by itself after `visibility_seconds` unless it is renewed; its item then is there for all again.
Principals and sessions are hashes in subjects, so that no value of a caller reaches the syntax of subjects. All
requests are those of the JetStream API (docs.nats.io, "JetStream wire API Reference"), answered by the leader of the
stream. Needs NATS 2.9.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from sandbox_adapters.nats_connection import NatsConnection, NobodyAnswers
from sandbox_adapters.queues.jetstream_turns import NOTHING, Lane, label_token
from sandbox_adapters.queues.redis_items import encode_item
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.ports.queue import QueueItem

OLDEST_SERVER: Final = (2, 9, 0)

_NO_STREAM, _NO_MESSAGE, _WRONG_SEQUENCE, _STORE_FAILED = 10059, (10037, 10057), (10070, 10071), 10077
_IN_USE = (10058, 10065)
"""The name of a stream, or its subjects: which is said to who makes the same one at the same moment is a race."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the stream of items says of itself. `entries` are the items that were asked for, by execution id."""

    messages: int
    last_sequence: int
    entries: dict[str, Lane]


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of the stream of items. `lane` is None when it cannot be one of ours."""

    sequence: int
    lane: Lane | None
    execution_id: str
    data: bytes


@dataclass(slots=True)
class Mark:
    """A mark that this process made. `sequence` changes with each renewal."""

    subject: str
    sequence: int


class Refused(StoreUnavailable):
    """JetStream answered with an error. `number` is its `err_code`."""

    def __init__(self, address: str, error: dict[str, Any]) -> None:
        self.number = int(error.get("err_code", 0))
        self.description = str(error.get("description", ""))
        super().__init__(f"NATS at {address} says: {self.description or self.number}")


class Streams:
    """Requests to both streams. They are created when they are missing: at the first request, and after a loss.

    Args:
        connection: entered before use.
        visibility_seconds: how long a mark lives. A longer one of another process stays.
    """

    def __init__(self, connection: NatsConnection, *, visibility_seconds: float) -> None:
        base = connection.options.base
        self._connection = connection
        self._visibility = visibility_seconds
        self._items, self._marks = f"{base}_waiting", f"{base}_held"
        self._item_subjects, self._mark_subjects = f"{base}.waiting", f"{base}.held"
        self._is_declared = False

    async def put(self, item: QueueItem, *, after: int) -> bool:
        """Store an item if nothing was stored since `after`; again is no error. False: something was."""
        lane = lane_of(item)
        subject = f"{self._item_subjects}.{lane.principal}.{lane.session}.{lane.labels}.{_checked(item.execution_id)}"
        try:
            await self._publish(subject, encode_item(item).encode(), {"Nats-Expected-Last-Sequence": str(after)})
        except Refused as error:
            if error.number in _WRONG_SEQUENCE:
                return False
            if error.number != _STORE_FAILED or "per subject" not in error.description:
                raise
        return True

    async def waiting(self, *, of: str | None = None) -> Waiting:
        """Return what is in the stream of items, with all entries of one principal, or without entries."""
        state = await self._state(self._items, f"{self._item_subjects}.{of}.>" if of else None)
        return _read(state)

    async def listed(self) -> Waiting:
        """Return what is in the stream of items, with every entry, in the order of their ids."""
        return _read(await self._state(self._items, f"{self._item_subjects}.>"))

    async def find(self, execution_id: str) -> Lane | None:
        """Return the lane of an item."""
        if not _TOKEN.fullmatch(execution_id):
            return None
        found = _read(await self._state(self._items, f"{self._item_subjects}.*.*.*.{execution_id}"))
        return found.entries.get(execution_id)

    async def head(self, lane: Lane | None, *, start: int = 0) -> Stored | None:
        """Return the first message of a lane, or of all, from a sequence number on."""
        path = ">" if lane is None else f"{lane.principal}.{lane.session}.{lane.labels}.*"
        return await self._get({"seq": start, "next_by_subj": f"{self._item_subjects}.{path}"})

    async def is_there(self, sequence: int) -> bool:
        """Return whether this message is in the stream of items still."""
        return await self._get({"seq": sequence}) is not None

    async def drop(self, sequence: int) -> None:
        """Delete a message from the stream of items; again is no error."""
        await self._delete(self._items, sequence)

    async def drop_item(self, lane: Lane, execution_id: str) -> bool:
        """Delete an item; False when it is not there."""
        subject = f"{self._item_subjects}.{lane.principal}.{lane.session}.{lane.labels}.{_checked(execution_id)}"
        return bool((await self._ask("STREAM.PURGE", self._items, {"filter": subject})).get("purged"))

    async def mark(self, lane: Lane, execution_id: str) -> Mark | None:
        """Mark an item; None when somebody else has."""
        subject = f"{self._mark_subjects}.{lane.principal}.{_checked(execution_id)}"
        sequence = await self._set_mark(subject, 0)
        return None if sequence is None else Mark(subject, sequence)

    async def renew(self, mark: Mark) -> None:
        """Let a mark live on, if it is there still."""
        sequence = await self._set_mark(mark.subject, mark.sequence)
        if sequence is not None:
            mark.sequence = sequence

    async def unmark(self, mark: Mark) -> None:
        """Delete a mark, if it is ours still."""
        await self._delete(self._marks, mark.sequence)

    async def marked(self, *, of: str | None = None) -> set[str]:
        """Return the ids of all marked items, or of those of one principal."""
        path = ">" if of is None else f"{of}.>"
        state = await self._state(self._marks, f"{self._mark_subjects}.{path}")
        return {subject.rpartition(".")[2] for subject in state.get("subjects") or ()}

    async def marks(self) -> int:
        """Return how many items are marked."""
        return int((await self._state(self._marks, None))["messages"])

    async def declare(self) -> None:
        """Create what is missing. Raises StoreUnavailable when the server is too old."""
        version = self._connection.server_version
        if (0, 0, 0) < version < OLDEST_SERVER:
            shown = ".".join(map(str, version))
            raise StoreUnavailable(f"NATS at {self._connection.address} is {shown}, and the queue needs 2.9 or newer")
        replicas = self._connection.options.replicas
        await self._create(
            self._items,
            {
                "subjects": [f"{self._item_subjects}.*.*.*.*"],
                "storage": "file",
                "discard": "new",
                "discard_new_per_subject": True,
                "max_msgs_per_subject": 1,
                "num_replicas": replicas,
                "description": "Executions that wait for a worker of Sandbox.",
            },
        )
        age = round(self._visibility * _SECOND)
        marks = {
            "subjects": [f"{self._mark_subjects}.*.*"],
            "storage": "memory",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "max_age": age,
            "duplicate_window": min(age, 2 * 60 * _SECOND),
            "num_replicas": replicas,
            "description": "Which of them a worker is taking.",
        }
        config = await self._create(self._marks, marks)
        if int(config.get("max_age", 0)) < age:
            await self._ask_once("STREAM.UPDATE", self._marks, config | {"max_age": age})
        self._is_declared = True

    async def _create(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration that a stream has, creating it if need be."""
        try:
            found = await self._ask_once("STREAM.INFO", name, {})
        except Refused as error:
            if error.number != _NO_STREAM:
                raise
            try:
                found = await self._ask_once("STREAM.CREATE", name, {"name": name, "retention": "limits", **config})
            except Refused as failed:
                if failed.number not in _IN_USE:
                    raise
                try:
                    found = await self._ask_once("STREAM.INFO", name, {})
                except Refused:
                    raise failed from None
        return dict(found["config"])

    async def _set_mark(self, subject: str, after: int) -> int | None:
        try:
            return await self._publish(subject, b"", {"Nats-Expected-Last-Subject-Sequence": str(after)})
        except Refused as error:
            if error.number in _WRONG_SEQUENCE:
                return None
            raise

    async def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        if not self._is_declared:
            await self.declare()
        try:
            answer = await self._connection.request(subject, data, headers)
        except NobodyAnswers:
            await self.declare()
            answer = await self._connection.request(subject, data, headers)
        return int(self._good(answer)["seq"])

    async def _state(self, stream: str, subjects: str | None) -> dict[str, Any]:
        if subjects is None:
            return dict((await self._ask("STREAM.INFO", stream, {}))["state"])
        found: dict[str, int] = {}
        while True:
            answer = await self._ask("STREAM.INFO", stream, {"subjects_filter": subjects, "offset": len(found)})
            page = answer["state"].get("subjects") or {}
            found |= page
            if not page or len(found) >= int(answer.get("total", 0)):  # a page has 100,000 at most
                return {**answer["state"], "subjects": found}

    async def _get(self, wanted: dict[str, Any]) -> Stored | None:
        try:
            message = (await self._ask("STREAM.MSG.GET", self._items, wanted))["message"]
        except Refused as error:
            if error.number in _NO_MESSAGE:
                return None
            raise
        execution_id, lane = _entry(message["subject"]) or ("", None)
        return Stored(int(message["seq"]), lane, execution_id, base64.b64decode(message.get("data", "")))

    async def _delete(self, stream: str, sequence: int) -> None:
        try:
            await self._ask("STREAM.MSG.DELETE", stream, {"seq": sequence, "no_erase": True})
        except Refused as error:
            if error.number not in _NO_MESSAGE:
                raise

    async def _ask(self, what: str, stream: str, question: dict[str, Any]) -> dict[str, Any]:
        if not self._is_declared:
            await self.declare()
        try:
            return await self._ask_once(what, stream, question)
        except Refused as error:
            if error.number != _NO_STREAM:
                raise
        await self.declare()
        return await self._ask_once(what, stream, question)

    async def _ask_once(self, what: str, stream: str, question: dict[str, Any]) -> dict[str, Any]:
        payload = json.dumps(question).encode() if question else b""
        return self._good(await self._connection.request(f"$JS.API.{what}.{stream}", payload))

    def _good(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise Refused(self._connection.address, answer["error"])
        return answer


def lane_of(item: QueueItem) -> Lane:
    """Return the lane of an item: one session of one principal, and the labels."""
    session = NOTHING if item.session_id is None else _hash(item.session_id)
    return Lane(_hash(item.principal), session, label_token(item.labels))


def principal_token(principal: str) -> str:
    """Return what stands for a principal in subjects."""
    return _hash(principal)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()[:15]
    return base64.urlsafe_b64encode(digest).decode()


def _checked(execution_id: str) -> str:
    if not _TOKEN.fullmatch(execution_id):
        raise ValueError("not an execution id")
    return execution_id


def _last_token(subject: str) -> str:
    return subject.rpartition(".")[2]


def _read(state: dict[str, Any]) -> Waiting:
    entries = [_entry(subject) for subject in sorted(state.get("subjects") or (), key=_last_token)]
    return Waiting(int(state["messages"]), int(state["last_seq"]), dict(entry for entry in entries if entry))


def _entry(subject: str) -> tuple[str, Lane] | None:
    """Return the execution id and the lane that a subject names; None when another program stored it."""
    tokens = subject.split(".")[-4:]
    if len(tokens) < 4 or not _TOKEN.fullmatch(tokens[3]):
        return None
    return tokens[3], Lane(*tokens[:3])
