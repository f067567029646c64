"""Walls: what stands around every sandbox of a runner beside bwrap's namespaces, and the record of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from sandbox_adapters.runners.controls import ALL, Control, Controls
from sandbox_adapters.runners.descriptor_room import Limit, make_room, within
from sandbox_adapters.runners.hardening import bpf, landlock, seccomp
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_core.domain.policy import ResourceLimits

_MIB = 1 << 20
_OWN_MEMORY_BYTES = 8 * _MIB
"""For bwrap, the sandbox's pid 1 and what the kernel keeps for both; measured: 1 to 2 MiB."""
OWN_PROCESSES = 2
"""bwrap itself and the sandbox's pid 1."""
_MOST_PROCESSES = 1 << 22
"""PID_MAX_LIMIT of the kernel, which nothing can pass; `pids.max` takes no number over it."""
_CONTROLLERS = ("memory", "pids")
"""Version 2 counts CPU time by itself; a further hierarchy of version 1 for it would slow every start."""
INODES_FOR_EACH_MIB = 512
"""Of `workspace_mb`, where no cgroup bounds memory: files of 2 KiB fill it before their number does."""
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Walls:
    """Made once by a runner and used by its launchers, until `close`. Tests alone give `controls`.

    Raises OSError, and ValueError on a machine that there is no system call table for.
    """

    def __init__(self, controls: Controls = ALL) -> None:
        self.controls = controls
        self._most_open_files = None if os.geteuid() == 0 else make_room()
        program = seccomp.build_filter() if controls.has(Control.SECCOMP) else bpf.pack(bpf.ret(seccomp.RET_ALLOW))
        self.filter_descriptor = os.memfd_create("seccomp-filter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(self.filter_descriptor, program)
        # One for all executions, so nobody may ever change it.
        fcntl.fcntl(self.filter_descriptor, fcntl.F_ADD_SEALS, _SEALS)
        scopes = landlock.detect()
        facts: dict[str, str] = {}
        layers: list[str] = []
        if controls.has(Control.SECCOMP):
            layers.append("seccomp")
            facts["seccomp_sha256"] = seccomp.filter_hash(program)
        if scopes.scopes and controls.has(Control.LANDLOCK_SCOPES):
            layers.append("landlock_scopes")
            facts["landlock_abi"] = str(scopes.abi)
            facts["landlock_scopes"] = ", ".join(scopes.scopes)
        self.cgroups = open_cgroups(_CONTROLLERS, hierarchies=None if controls.has(Control.CGROUP_TREE) else ())
        """Where the launcher makes a cgroup for each execution."""
        self.cgroups.sweep()
        self._version = self.cgroups.controllers
        if self.cgroups.branches:
            layers.append("cgroup_tree")
            found = [f"{name} v{version}" for name, version in sorted(self._version.items())]
            facts["cgroup_controllers"] = ", ".join(found) or "none"
        self.layers = tuple(layers)
        """Names for `Isolation.layers`."""
        self.facts: Mapping[str, str] = MappingProxyType(facts)
        """For `Isolation.facts`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def with_room(self, limits: list[Limit]) -> list[Limit]:
        """Return a command's limits, with those that leave the server room for its own; see descriptor_room."""
        return limits if self._most_open_files is None else within(limits, self._most_open_files)

    def close(self) -> None:
        """Let go of everything; no launcher may be running any more."""
        self.cgroups.close()
        os.close(self.filter_descriptor)

    @property
    def bounds_memory(self) -> bool:
        """True when the memory of a whole tree is bounded."""
        return "memory" in self._version

    @property
    def bounds_processes(self) -> bool:
        """True when the processes of a whole tree are counted and bounded."""
        return "pids" in self._version

    @property
    def bounds_cpu_time(self) -> bool:
        """True when the CPU time of a whole tree is counted and bounded."""
        return self.cgroups.counts_cpu_time

    def tree_limits(self, limits: ResourceLimits) -> tuple[int, int, int]:
        """Return the bytes of memory, the processes and the seconds of CPU time that a command's cgroup may have.

        -1 for what is not bounded there.
        """
        memory, processes, cpu = limits.max_memory_mb, limits.max_processes, limits.max_cpu_seconds
        return (
            -1 if memory is None or not self.bounds_memory else memory * _MIB + _OWN_MEMORY_BYTES,
            -1 if processes is None or not self.bounds_processes else min(processes + OWN_PROCESSES, _MOST_PROCESSES),
            -1 if cpu is None or not self.bounds_cpu_time else cpu,
        )

    def inodes(self, limits: ResourceLimits) -> int:
        """Return how many files each private file system may have by a bound of its own; 0 for none.

        Each takes about 1 KiB of the kernel's memory, which counts for the tree: where that is bounded, so are they,
        and nothing has to enter the sandbox, which takes some milliseconds.
        """
        memory, _, _ = self.tree_limits(limits)
        if memory >= 0 or limits.workspace_mb is None or not self.controls.has(Control.SIZED_TMPFS):
            return 0
        return limits.workspace_mb * INODES_FOR_EACH_MIB

    def mechanisms(self, limits: ResourceLimits) -> dict[str, str]:
        """Return limit -> what holds it for the whole tree, for the limits that a cgroup holds."""
        memory, processes, cpu = self.tree_limits(limits)
        held = {}
        if memory >= 0:
            held["max_memory_mb"] = f"cgroup v{self._version['memory']}, whole tree; rlimit_data, per process"
        if processes >= 0:
            held["max_processes"] = f"cgroup v{self._version['pids']}, whole tree; rlimit_nproc"
        if cpu >= 0:
            held["max_cpu_seconds"] = "CPU time of the cgroup, whole tree; rlimit_cpu, per process"
        if limits.workspace_mb is not None:
            bound = f"{INODES_FOR_EACH_MIB} files for each MiB of it, in each and in /dev/shm, by tmpfs nr_inodes"
            files = bound if self.inodes(limits) else "files as max_memory_mb"
            held["workspace_mb"] = f"tmpfs size, for each of /workspace and /tmp; {files}"
        return held
