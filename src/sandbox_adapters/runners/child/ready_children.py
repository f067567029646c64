"""ReadyChildren: the launcher's few children that wait for a job, and how they come and go."""

from __future__ import annotations

import select
import signal
from collections import deque
from collections.abc import Sequence

from ..hardening.cgroup_leaf import Leaf  # noqa: TID252 - see child/__init__.py
from .job import Settings
from .kernel import send_signal
from .leaves import Leaves, limit
from .ready import MAX_PACKET_BYTES, ReadyChild
from .wire import RunRequest

_MOST_FAILURES = 5
"""Children that ended before they were ready, one after the other: then none is made any more."""


class ReadyChildren:
    """Up to `wanted` of them. One is made at a time, since a move into a cgroup holds up others.

    `poll` is told which descriptors to watch; `attached` wants to hear of them, `ended` of every reaped process.
    """

    def __init__(self, wanted: int, leaves: Leaves, settings: Settings, poll: select.poll) -> None:
        self._wanted = wanted
        self._leaves = leaves
        self._settings = settings
        self._poll = poll
        self._failures = 0
        self._waiting: dict[int, ReadyChild] = {}
        self._attaching: dict[int, ReadyChild] = {}
        self._ready: deque[ReadyChild] = deque()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def pids(self) -> set[int]:
        """Every child that waits or is about to."""
        return set(self._waiting)

    @property
    def attaching(self) -> bool:
        """True while one is being moved into its cgroup."""
        return bool(self._attaching)

    @property
    def lacking(self) -> bool:
        """True when another one is wanted."""
        return len(self._waiting) < self._wanted and self._failures < _MOST_FAILURES

    def make(self) -> None:
        """Fork one more."""
        leaf: Leaf | None = None
        try:
            leaf = self._leaves.make()
            child = ReadyChild.fork(leaf, self._settings)
        except OSError:
            # A job that needs one of its own says what is wrong.
            self._leaves.discard(leaf)
            self._failures += 1
            return
        self._waiting[child.pid] = child
        self._attaching[child.channel.fileno()] = child
        self._poll.register(child.channel.fileno(), select.POLLIN)

    def attached(self, descriptor: int) -> bool:
        """Take note that one says something; False when the descriptor is none of theirs."""
        child = self._attaching.pop(descriptor, None)
        if child is None:
            return False
        self._poll.unregister(descriptor)
        if child.is_ready():
            self._failures = 0
            self._ready.append(child)
        else:
            self._failures += 1
            _end(child)
        return True

    def give(self, request: RunRequest, packet: bytes, passed: Sequence[int]) -> tuple[int, Leaf | None] | None:
        """Give a job to one; return its pid and its leaf, None when there is none to take it. Raises OSError."""
        while self._ready and len(packet) <= MAX_PACKET_BYTES:
            child = self._ready.popleft()
            try:
                limit(child.leaf, request)
            except OSError:
                _end(child)
                raise
            if child.hand_over(packet, passed):
                del self._waiting[child.pid]
                return child.pid, child.leaf
            _end(child)
        return None

    def ended(self, pid: int) -> bool:
        """Let go of a child that was reaped; False when it is none of these."""
        child = self._waiting.pop(pid, None)
        if child is None:
            return False
        if child in self._ready:
            self._ready.remove(child)
        if self._attaching.pop(child.channel.fileno(), None) is not None:
            self._poll.unregister(child.channel.fileno())
            self._failures += 1
        child.channel.close()
        self._leaves.discard(child.leaf)
        return True


def _end(child: ReadyChild) -> None:
    """End one; `ended` lets go of its leaf."""
    child.channel.close()
    send_signal(child.pid, signal.SIGKILL)
