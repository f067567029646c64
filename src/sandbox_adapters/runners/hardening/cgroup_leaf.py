"""Leaf: the cgroup of one execution, in every hierarchy that is used, whichever version each has."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .cgroup_paths import read, write

_CPU_PERIOD_MICROSECONDS = 100_000
_KILL_ROUNDS = 50


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """Bounds on a whole process tree; None is no bound.

    `memory_bytes` covers what its processes use, what they keep in a tmpfs, and no swap on top. `processes` counts
    threads too. `cpus` is how many processors' time it may have, for example 0.5.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a whole process tree used so far; None where the kernel or the hierarchies in use do not tell.

    `oom_kills` counts processes that the kernel killed at the memory limit, `forks_refused` what the limit
    of processes refused, `processes` those that it has right now, threads and zombies counted.
    """

    peak_memory_bytes: int | None = None
    oom_kills: int | None = None
    peak_processes: int | None = None
    forks_refused: int | None = None
    processes: int | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """A directory in one hierarchy, and the controllers that it has there."""

    version: int
    controllers: frozenset[str]
    directory: str

    def below(self, name: str) -> Branch:
        """Return the branch for a directory in this one."""
        return replace(self, directory=f"{self.directory}/{name}")


class Leaf:
    """The directories of one execution. Made by `Cgroups.make_leaf`; nothing here waits for anything."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        # Version 2 first: who is attached to the others only would be out of reach of cgroup.kill.
        self._branches = sorted(branches, key=lambda branch: -branch.version)

    @classmethod
    def make(cls, branches: Sequence[Branch], name: str) -> Leaf:
        """Make an empty leaf below each of the given branches. Raises OSError; then nothing is left."""
        leaf = cls([branch.below(name) for branch in branches])
        made: list[str] = []
        try:
            for directory in leaf.directories:
                os.mkdir(directory, 0o755)
                made.append(directory)
        except OSError:
            for directory in made:
                os.rmdir(directory)
            raise
        return leaf

    @property
    def directories(self) -> list[str]:
        """One directory for each hierarchy."""
        return [branch.directory for branch in self._branches]

    def limit(self, limits: TreeLimits) -> None:
        """Set limits, on an empty leaf or a used one. Raises OSError, and for a controller that is missing ENOTSUP."""
        for controller, wanted in (
            ("memory", limits.memory_bytes),
            ("pids", limits.processes),
            ("cpu", limits.cpus),
        ):
            if wanted is None:
                continue
            branch = self._with(controller)
            if branch is None:
                raise OSError(errno.ENOTSUP, f"no cgroup with the {controller} controller")
            for name, value in _settings(branch, controller, wanted):
                write(f"{branch.directory}/{name}", value)

    def attach(self, pid: int) -> None:
        """Move a process into the leaf. Its later children are born there. Raises OSError.

        The first move after a while of quiet waits about 10 ms for the kernel (an RCU grace period), and every other
        change of a cgroup waits with it.
        """
        for branch in self._branches:
            write(f"{branch.directory}/cgroup.procs", str(pid))

    def enter(self) -> None:
        """Move the calling thread, the only one of its process, into the leaf. Later children are born there.

        Raises OSError. Version 1 has a file for single threads, and a thread that moves itself waits for nobody
        (kernels since 5.6). In version 2 such a move stays inside one domain, so there it is `attach`.
        """
        for branch in self._branches:
            write(f"{branch.directory}/{'tasks' if branch.version == 1 else 'cgroup.procs'}", "0")

    def processes(self) -> set[int]:
        """Return the pids in the leaf, zombies not counted."""
        found: set[int] = set()
        for branch in self._branches:
            with contextlib.suppress(OSError):
                found |= {int(pid) for pid in read(f"{branch.directory}/cgroup.procs").split()}
        return found - {0}

    def usage(self) -> TreeUsage:
        """Return what the tree has used; to be read before `remove`."""
        values: dict[str, int | float] = {}
        for branch in self._branches:
            values |= _usage_v2(branch) if branch.version == 2 else _usage_v1(branch)
        peak, oom, most, refused, now = (values.get(name) for name in ("peak", "oom_kill", "most", "refused", "now"))
        return TreeUsage(
            peak_memory_bytes=None if peak is None else int(peak),
            oom_kills=None if oom is None else int(oom),
            peak_processes=None if most is None else int(most),
            forks_refused=None if refused is None else int(refused),
            processes=None if now is None else int(now),
            user_seconds=values.get("user"),
            system_seconds=values.get("system"),
        )

    def cpu_seconds(self) -> float | None:
        """Return the CPU time of every process that is or was in the leaf; None where nothing here counts it."""
        for branch in self._branches:
            found = _cpu_v2(branch.directory) if branch.version == 2 else _cpu_v1(branch)
            if len(found) == 2:
                return sum(found.values())
        return None

    def kill(self) -> None:
        """SIGKILL to every process, also those being forked right now. They may take a moment to be gone."""
        if not self.kill_at_once():
            self._kill_one_by_one()

    def kill_at_once(self) -> bool:
        """SIGKILL to every process with one write; False where the kernel does not offer it (cgroup.kill, 5.14)."""
        for branch in self._branches:
            if branch.version == 2:
                with contextlib.suppress(OSError):
                    write(f"{branch.directory}/cgroup.kill", "1")
                    return True
        return False

    def remove(self) -> bool:
        """Remove the directories; False, and they stay, when there are still processes. Again is no error.

        Raises OSError.
        """
        for branch in self._branches:
            try:
                os.rmdir(branch.directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                # In the order of attaching: whoever is on the way in is in the first already.
                if error.errno != errno.EBUSY:
                    raise
                return False
        return True

    def _with(self, controller: str) -> Branch | None:
        return next((branch for branch in self._branches if controller in branch.controllers), None)

    def _kill_one_by_one(self) -> None:
        """Where there is no cgroup.kill (kernels before 5.14): nobody may fork any more, then each in turn."""
        pids = self._with("pids")
        if pids is not None:
            with contextlib.suppress(FileNotFoundError):
                write(f"{pids.directory}/pids.max", "0")
        for _ in range(_KILL_ROUNDS):
            listed = self.processes()
            if not listed:
                return
            held: dict[int, int] = {}
            try:
                for pid in listed:
                    with contextlib.suppress(ProcessLookupError):
                        held[pid] = os.pidfd_open(pid)
                # Whoever is listed still is who the descriptor means, so a number used again hits nobody else.
                for pid in held.keys() & self.processes():
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(held[pid], signal.SIGKILL)
            finally:
                for descriptor in held.values():
                    os.close(descriptor)


def remove_branch(branch: Branch) -> bool:
    """Kill and remove what is in a server's directory, and it; True when all is gone."""
    gone = True
    for name in _directories(branch.directory):
        leaf = Leaf([branch.below(name)])
        try:
            if not leaf.remove():
                leaf.kill()
                gone = leaf.remove() and gone
        except OSError:
            gone = False
    try:
        os.rmdir(branch.directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return gone


def _directories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _settings(branch: Branch, controller: str, wanted: float) -> list[tuple[str, str]]:
    """Return the files to write, in order."""
    folder, number = branch.directory, str(int(wanted))
    if controller == "pids":
        return [("pids.max", number)]
    if controller == "cpu":
        quota = str(max(1000, int(wanted * _CPU_PERIOD_MICROSECONDS)))
        if branch.version == 2:
            return [("cpu.max", f"{quota} {_CPU_PERIOD_MICROSECONDS}")]
        return [("cpu.cfs_period_us", str(_CPU_PERIOD_MICROSECONDS)), ("cpu.cfs_quota_us", quota)]
    if branch.version == 2:
        # One killed process of a tree leaves the rest in a state that nobody meant: all or none.
        settings = [("memory.max", number), ("memory.oom.group", "1")]
        return [*settings, ("memory.swap.max", "0")] if os.path.exists(f"{folder}/memory.swap.max") else settings
    settings = [("memory.limit_in_bytes", number)]
    both = "memory.memsw.limit_in_bytes"
    if not os.path.exists(f"{folder}/{both}"):
        return settings
    # Memory and swap together may never be less than memory alone.
    raised = int(wanted) > int(read(f"{folder}/{both}"))
    return [(both, number), *settings] if raised else [*settings, (both, number)]


def _usage_v1(branch: Branch) -> dict[str, int | float]:
    folder = branch.directory
    found: dict[str, int | float] = {}
    if "memory" in branch.controllers:
        found |= _number(f"{folder}/memory.max_usage_in_bytes", "peak")
        found |= _keyed(f"{folder}/memory.oom_control", {"oom_kill": "oom_kill"})
    if "pids" in branch.controllers:
        found |= _pids(folder)
    return found | _cpu_v1(branch)


def _usage_v2(branch: Branch) -> dict[str, int | float]:
    folder = branch.directory
    found: dict[str, int | float] = {}
    if "memory" in branch.controllers:
        found |= _number(f"{folder}/memory.peak", "peak")
        found |= _keyed(f"{folder}/memory.events", {"oom_kill": "oom_kill"})
    if "pids" in branch.controllers:
        found |= _pids(folder)
    return found | _cpu_v2(folder)


def _cpu_v1(branch: Branch) -> dict[str, int | float]:
    if "cpuacct" not in branch.controllers:
        return {}
    folder = branch.directory
    user = _number(f"{folder}/cpuacct.usage_user", "user", 1e-9)
    return user | _number(f"{folder}/cpuacct.usage_sys", "system", 1e-9)


def _cpu_v2(folder: str) -> dict[str, int | float]:
    """Counted in every cgroup of version 2, also without the cpu controller (kernels since 4.15)."""
    return _keyed(f"{folder}/cpu.stat", {"user_usec": "user", "system_usec": "system"}, 1e-6)


def _pids(folder: str) -> dict[str, int | float]:
    found = _number(f"{folder}/pids.peak", "most") | _number(f"{folder}/pids.current", "now")
    return found | _keyed(f"{folder}/pids.events", {"max": "refused"})


def _number(path: str, name: str, factor: float = 1) -> dict[str, int | float]:
    try:
        return {name: int(read(path)) * factor}
    except (OSError, ValueError):
        return {}


def _keyed(path: str, names: dict[str, str], factor: float = 1) -> dict[str, int | float]:
    try:
        lines = read(path).splitlines()
    except OSError:
        return {}
    pairs = (line.split(" ", 1) for line in lines)
    return {names[pair[0]]: int(pair[1]) * factor for pair in pairs if pair[0] in names}
