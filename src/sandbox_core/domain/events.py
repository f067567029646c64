"""The events of an execution's output log: kinds, numbering, cursors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sandbox_core.domain.errors import InvalidArgument

MAX_EVENT_BYTES = 64 * 1024
"""The most output that one event carries."""

FieldValue = str | int | float | bool | None


class EventKind(StrEnum):
    """What an event is. The last four are terminal: exactly one of them ends every log."""

    READY = "ready"
    STDOUT = "stdout"
    STDERR = "stderr"
    TRUNCATED = "truncated"
    RESOURCE_LIMIT = "resource_limit"
    RETRY = "retry"
    """Whoever ran it is gone; what follows is of the next attempt."""
    EXIT = "exit"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def is_terminal(self) -> bool:
        """True for the kinds that end a log."""
        return self in _TERMINAL

    @property
    def is_output(self) -> bool:
        """True for the two kinds whose data the program printed."""
        return self in _OUTPUT


_TERMINAL = frozenset({EventKind.EXIT, EventKind.TIMEOUT, EventKind.CANCELLED, EventKind.ERROR})
_OUTPUT = frozenset({EventKind.STDOUT, EventKind.STDERR})


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event before the store numbers it.

    `data` is what was printed for stdout and stderr (at most MAX_EVENT_BYTES, never a split UTF-8
    character unless the program printed one), else one sentence in UTF-8. `fields` carries numbers for programs,
    for example `dropped_bytes` or `exit_code`.
    """

    kind: EventKind
    at: datetime
    data: bytes = b""
    fields: Mapping[str, FieldValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputEvent:
    """A numbered event. `seq` counts 1, 2, 3 … within one execution, without holes."""

    seq: int
    kind: EventKind
    at: datetime
    data: bytes = b""
    fields: Mapping[str, FieldValue] = field(default_factory=dict)

    @property
    def event_id(self) -> str:
        """The number as text: what clients resume after."""
        return str(self.seq)


_CURSOR = re.compile(r"[0-9]{1,18}")


def parse_event_id(text: str | None) -> int:
    """Turn a client's `last_event_id` into the number to read after; None and "" mean from the start.

    Raises InvalidArgument when the text is not a number of at most 18 digits.
    """
    if not text:
        return 0
    if not _CURSOR.fullmatch(text):
        raise InvalidArgument("last_event_id", "must be the last_event_id of an earlier reply, for example '12'")
    return int(text)
