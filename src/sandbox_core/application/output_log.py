"""OutputBuffer: turns reads from two pipes into bounded, numbered-to-be events. Pure; knows no store and no task."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from sandbox_core.domain.events import MAX_EVENT_BYTES, EventDraft, EventKind

LARGEST_TAIL_BYTES = 256 * 1024

SMALL_BYTES = 4 * 1024
"""Pieces of one stream that follow each other become one up to this size, so that single bytes cost no more."""
MOST_WAITING, MOST_IN_TAIL = 32, 1024
"""Pieces past which those of two streams that take turns become one of each: how two pipes were interleaved is known
only roughly, and an event for each byte would take hundreds of times its memory, and seconds to store."""

_Piece = tuple[EventKind, bytes, datetime]


def incomplete_suffix(data: bytes) -> int:
    """Return how many bytes at the end of `data` begin a UTF-8 character that is not complete (0 to 3).

    Bytes that can never become a character (RFC 3629) are not held back.
    """
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        if byte >= 0xF5 or byte < 0xC2:
            return 0
        needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return back if back < needed else 0
    return 0


def character_start(data: bytes, index: int) -> int:
    """Return the first index at or after `index` that does not fall inside a UTF-8 character."""
    end = min(index + 3, len(data))
    while index < end and data[index] & 0xC0 == 0x80:
        index += 1
    return index


def _add(pieces: list[_Piece] | deque[_Piece], piece: _Piece, most: int) -> None:
    """Append a piece, or make it the end of the last one of its stream."""
    kind, data, at = piece
    for back in range(1, min(len(pieces), 2 if len(pieces) >= most else 1) + 1):
        last_kind, last, last_at = pieces[-back]
        if last_kind is kind:
            if len(last) + len(data) > SMALL_BYTES:
                break
            pieces[-back] = (kind, last + data, at if back == 1 else last_at)
            return
    pieces.append(piece)


class OutputBuffer:
    """The output of one execution between the pipes and the log.

    Keeps the first `cap_bytes` less a tail at once, and the newest bytes past it in a tail (a quarter of the cap, at
    most 256 KiB) that comes out at the end, behind one `truncated` event when anything was dropped between them.
    The order within a stream is kept; that of two streams as far as they do not take turns in small pieces very often.
    Memory is bounded by the caller, which stops feeding while `waiting_bytes` is high, and by the tail.

    Args:
        cap_bytes: how much output is kept in all; None keeps everything.
    """

    def __init__(self, cap_bytes: int | None) -> None:
        self._tail_limit = 0 if cap_bytes is None else min(cap_bytes // 4, LARGEST_TAIL_BYTES)
        self._head_left = None if cap_bytes is None else cap_bytes - self._tail_limit
        self._held: dict[EventKind, bytes] = {}
        self._waiting: list[_Piece] = []
        self._tail: deque[_Piece] = deque()
        self._tail_bytes = 0
        self._offset = 0
        self.waiting_bytes = 0
        self.dropped_bytes = 0
        self.printed_bytes = {EventKind.STDOUT: 0, EventKind.STDERR: 0}

    def feed(self, kind: EventKind, data: bytes, at: datetime) -> None:
        """Take what was read from one stream. An incomplete character waits for its rest."""
        self.printed_bytes[kind] += len(data)
        held = self._held.pop(kind, b"")
        if held:
            data = held + data
        if incomplete := incomplete_suffix(data):
            self._held[kind] = data[-incomplete:]
            data = data[:-incomplete]
        if data:
            self._keep(kind, data, at)

    def take(self) -> list[EventDraft]:
        """Return the events that are ready to be stored, merging neighbours of one stream; empties the buffer."""
        drafts: list[EventDraft] = []
        parts: list[bytes] = []
        size = 0
        waiting, self._waiting, self.waiting_bytes = self._waiting, [], 0
        for index, (kind, data, at) in enumerate(waiting):
            parts.append(data)
            size += len(data)
            following = waiting[index + 1] if index + 1 < len(waiting) else None
            if following is None or following[0] is not kind or size + len(following[1]) > MAX_EVENT_BYTES:
                self._emit(drafts, kind, parts[0] if len(parts) == 1 else b"".join(parts), at)
                parts, size = [], 0
        return drafts

    def finish(self, at: datetime) -> list[EventDraft]:
        """Return everything that is left: held characters, what was dropped, the tail."""
        for kind, data in list(self._held.items()):
            self._keep(kind, data, at)
        self._held.clear()
        drafts = self.take()
        if self.dropped_bytes:
            text = f"{self.dropped_bytes} bytes of output were dropped here; the output limit was reached."
            drafts.append(EventDraft(EventKind.TRUNCATED, at, text.encode(), {"dropped_bytes": self.dropped_bytes}))
            self._offset += self.dropped_bytes
        self._waiting = list(self._tail)
        self._tail.clear()
        self._tail_bytes = 0
        return drafts + self.take()

    def _keep(self, kind: EventKind, data: bytes, at: datetime) -> None:
        if self._head_left is not None:
            if len(data) > self._head_left:
                cut = self._head_left - incomplete_suffix(data[: self._head_left])
                rest = data[cut:]
                data, self._head_left = data[:cut], 0
                self._keep_in_tail(kind, rest, at)
            else:
                self._head_left -= len(data)
        if data:
            _add(self._waiting, (kind, data, at), MOST_WAITING)
            self.waiting_bytes += len(data)

    def _keep_in_tail(self, kind: EventKind, data: bytes, at: datetime) -> None:
        if len(data) > self._tail_limit:
            start = character_start(data, len(data) - self._tail_limit)
            self.dropped_bytes += self._tail_bytes + start
            self._tail.clear()
            self._tail_bytes = 0
            data = data[start:]
        _add(self._tail, (kind, data, at), MOST_IN_TAIL)
        self._tail_bytes += len(data)
        while (excess := self._tail_bytes - self._tail_limit) > 0:
            oldest_kind, oldest, oldest_at = self._tail.popleft()
            gone = min(len(oldest), character_start(oldest, excess))
            if gone < len(oldest):
                self._tail.appendleft((oldest_kind, oldest[gone:], oldest_at))
            self._tail_bytes -= gone
            self.dropped_bytes += gone

    def _emit(self, drafts: list[EventDraft], kind: EventKind, data: bytes, at: datetime) -> None:
        start = 0
        while start < len(data):
            end = min(start + MAX_EVENT_BYTES, len(data))
            if end < len(data):
                end -= incomplete_suffix(data[start:end])
            piece = data if start == 0 and end == len(data) else data[start:end]
            drafts.append(EventDraft(kind, at, piece, {"offset": self._offset}))
            self._offset += len(piece)
            start = end
