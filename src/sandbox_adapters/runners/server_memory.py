"""Whether the kernel killed programs for want of the server's own memory, for executions without a cgroup of their own.

Then they are in the server's cgroup, for example that of its container, which counts the processes of it that were
killed so (cgroups(7); memory.events in version 2, memory.oom_control in version 1), but not whose they were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from sandbox_adapters.runners.hardening.cgroup_paths import own_hierarchies, read

_KEPT = 256
"""Looks that are remembered; whoever started before all of them is compared with the first."""


class ServerMemory:
    """Made when the server starts; looks only when an execution was killed.

    Args:
        files: where the kernel counts; None finds those of this process's cgroups. None at all is no error.
    """

    def __init__(self, files: Sequence[str] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = tuple(_own_files() if files is None else files)
        self._clock = clock
        self._looks: deque[tuple[float, int]] = deque([(clock(), self._count())], maxlen=_KEPT)

    def ran_out_since(self, started: float) -> bool:
        """Return whether a process was killed for it after `started`, a time of the clock, as far as looks tell.

        True also when that was another execution's: a probable reason for one that was killed, and that nobody asked to
        be.
        """
        # Before this look: what it finds new happened after the last one, which may be long before the start.
        earlier = [count for at, count in self._looks if at <= started]
        count = self._count()
        self._looks.append((self._clock(), count))
        return count > (earlier[-1] if earlier else self._looks[0][1])

    def _count(self) -> int:
        return sum(map(_kills, self._files))


def _own_files() -> list[str]:
    names = {1: "memory.oom_control", 2: "memory.events"}
    return [
        f"{each.directory}/{names[each.version]}"
        for each in own_hierarchies()
        if each.version == 2 or "memory" in each.controllers
    ]


def _kills(path: str) -> int:
    try:
        fields = dict(line.split(" ", 1) for line in read(path).splitlines() if " " in line)
        return int(fields.get("oom_kill", "0"))
    except (OSError, ValueError):
        return 0
