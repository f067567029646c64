"""Bounds: the kernel uid and the limits of one execution, what they ask of the launcher, and the record of them."""

from __future__ import annotations

import os
import resource
import secrets
from collections.abc import Sequence
from typing import Final

from sandbox_adapters.runners.bubblewrap_walls import OWN_PROCESSES, Walls
from sandbox_adapters.runners.child.wire import RunRequest
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.exit_mapping import bounded, rlimits
from sandbox_adapters.runners.rlimit_mechanisms import rlimit_mechanisms
from sandbox_adapters.runners.uid_range import uid_range
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ResourceLimits

_FIXED_LIMITS: Final = (
    # A desktop's user may have more of these two, for sound; a process with it could keep a core from everybody else.
    (resource.RLIMIT_RTPRIO, 0),
    (resource.RLIMIT_NICE, 0),
    (resource.RLIMIT_MEMLOCK, 64 * 1024),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_SIGPENDING, 4096),
)


class Bounds:
    """What bounds each execution of one runner.

    Args:
        walls: entered before use.
        controls: what a test has taken away.
        layers: what the record names.
        as_root: whether this server may give an execution another uid.
    """

    def __init__(self, walls: Walls, controls: Controls, layers: tuple[str, ...], *, as_root: bool) -> None:
        self._walls = walls
        self._controls = controls
        self._layers = layers
        self._as_root = as_root
        self._uids: set[int] = set()
        self._uid_range = uid_range() if as_root else (0, 0)

    @property
    def uids_in_use(self) -> int:
        """How many uids were taken and not given back."""
        return len(self._uids)

    def take_uid(self) -> int:
        """Return a kernel uid that no other execution of this runner has; -1 when the server is not root."""
        if not self._as_root or not self._controls.has(Control.UNIQUE_UID):
            return -1
        first, count = self._uid_range
        while (uid := first + secrets.randbelow(count)) in self._uids:
            continue
        self._uids.add(uid)
        return uid

    def give_uid_back(self, uid: int) -> None:
        """Let another execution have it. No error for -1."""
        self._uids.discard(uid)

    def request(
        self,
        limits: ResourceLimits,
        uid: int,
        *,
        bwrap: bytes,
        command: Sequence[bytes],
        proxy_port: int,
        grants: bytes,
    ) -> RunRequest:
        """Return what the launcher is asked for: this command within these limits."""
        # Inside, the sandbox's pid 1 is counted too.
        inside = (
            -1
            if self._as_root or not self._controls.has(Control.RLIMITS) or limits.max_processes is None
            else limits.max_processes + 1 + self._slack
        )
        tree_memory_bytes, tree_processes, tree_cpu_seconds = self._walls.tree_limits(limits)
        return RunRequest(
            bwrap=bwrap,
            command=tuple(command),
            uid=uid,
            processes_inside=inside,
            tree_memory_bytes=tree_memory_bytes,
            tree_processes=tree_processes,
            tree_cpu_seconds=tree_cpu_seconds,
            limits=tuple(self._rlimits(limits)),
            proxy_port=proxy_port,
            grants=grants,
            inodes=self._walls.inodes(limits),
        )

    def isolation(self, limits: ResourceLimits, uid: int, *, version: str, hidden: Sequence[str] = ()) -> Isolation:
        """Return the record of an execution with this uid, -1 for the server's own, under bwrap of this version.

        `hidden` is what it cannot see of what others do.
        """
        held = {**rlimit_mechanisms(limits, unique_uid=uid >= 0), **self._walls.mechanisms(limits)}
        return Isolation(
            runner="bubblewrap",
            version=version,
            isolated=True,
            network="none",
            kernel_uid=uid if uid >= 0 else os.geteuid(),
            layers=self._layers,
            limits=self._controls.limits(held),
            facts={**self._walls.facts, **({"filesystem_hidden": ", ".join(hidden)} if hidden else {})},
        )

    def _rlimits(self, limits: ResourceLimits) -> list[tuple[int, int, int]]:
        if not self._controls.has(Control.RLIMITS):
            return []
        found = [(which, value, value) for which, value in _FIXED_LIMITS]
        if self._as_root and limits.max_processes is not None:
            processes = limits.max_processes + OWN_PROCESSES + self._slack
            found.append(bounded(resource.RLIMIT_NPROC, processes, processes))
        return self._walls.with_room([*found, *rlimits(limits)])

    @property
    def _slack(self) -> int:
        """By how much the rlimit is higher, so that the cgroup refuses first: only that one tells."""
        return 1 if self._walls.bounds_processes else 0
