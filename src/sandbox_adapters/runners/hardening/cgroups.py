"""Cgroups: a directory of the server's own in each usable hierarchy, and a leaf below it for each execution.

Version 2 is used where its controllers were delegated, version 1 where its hierarchies can be written to, both
together where a machine has both. Version 2 without any controller still kills a whole tree at once (cgroup.kill).

A process in the server's own cgroup keeps version 2 from giving controllers to cgroups below it ("no internal
processes", cgroups(7)). So the directory is made beside the server's cgroup when the parent was delegated too, which
is how systemd's `Delegate=yes` with `DelegateSubgroup=` and user sessions lay it out. Nothing that runs is ever moved,
except what is attached to a leaf.

The directory is locked (flock(2)) for as long as somebody has its descriptor: the server, and any process that it
gave the descriptors to. A lock shows who is alive also across containers, where process ids mean nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final

from .cgroup_leaf import Branch, Leaf, remove_branch
from .cgroup_paths import Hierarchy, own_hierarchies, read, write

CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct")
"""What `Cgroups` can make use of; cpuacct is part of every cgroup in version 2."""

_NAME = re.compile(r"sandbox-server-[0-9a-f]{16}")
_LEAF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ATTEMPTS = 10
_DELEGATED = ("user.delegate", "trusted.delegate")


class Cgroups:
    """What `open_cgroups` found usable on this machine, until `close`. Not for use by two threads at once."""

    def __init__(self, branches: Sequence[Branch], locks: Sequence[int], problems: Mapping[str, str]) -> None:
        self._branches = tuple(branches)
        self._locks = tuple(locks)
        self.controllers: Mapping[str, int] = MappingProxyType(
            {name: branch.version for branch in branches for name in sorted(branch.controllers)}
        )
        """Name of a controller -> version of the hierarchy that has it."""
        self.can_kill = any(branch.version == 2 for branch in branches)
        """True when a leaf is in version 2, which ends a whole tree with one write."""
        self.counts_cpu_time = any(
            "cpuacct" in branch.controllers or os.path.exists(f"{branch.directory}/cpu.stat") for branch in branches
        )
        """True when `Leaf.cpu_seconds` knows."""
        self.problems = MappingProxyType(dict(problems))
        """Directory -> why it could not be used."""

    def __enter__(self) -> Cgroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The server's own directories, for whoever makes leaves in another process."""
        return self._branches

    @property
    def directories(self) -> list[str]:
        """The paths of the server's own directories."""
        return [branch.directory for branch in self._branches]

    @property
    def locks(self) -> tuple[int, ...]:
        """Descriptors to give to another process that is to keep the directories alive."""
        return self._locks

    def make_leaf(self, name: str) -> Leaf:
        """Make an empty leaf in every hierarchy. Costs about 0.1 ms.

        Raises ValueError for a name that is none, OSError; then nothing is left.
        """
        if not _LEAF_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a leaf")
        return Leaf.make(self._branches, name)

    def sweep(self) -> list[str]:
        """Kill and remove what servers that are gone left behind; return the directories that are gone now.

        Directories of other servers that live, of anything else, and those whose processes have not ended
        yet stay; call it again for the last. Never raises for what cannot be removed.
        """
        swept = []
        for branch in self._branches:
            base = os.path.dirname(branch.directory)
            for name in _names(base):
                directory = f"{base}/{name}"
                if directory != branch.directory and _remove_dead(
                    Branch(branch.version, branch.controllers, directory)
                ):
                    swept.append(directory)
        return swept

    def close(self) -> None:
        """Kill and remove what is left of every leaf, as far as it goes at once, and let go. Again is no error."""
        for branch in self._branches:
            remove_branch(branch)
        for lock in self._locks:
            os.close(lock)
        self._branches, self._locks = (), ()


def open_cgroups(wanted: Collection[str] = CONTROLLERS, *, hierarchies: Sequence[Hierarchy] | None = None) -> Cgroups:
    """Make and lock a directory in every hierarchy of this process that helps; never raises.

    Args:
        wanted: controllers to look for. Each further hierarchy of version 1 makes attaching a little slower.
        hierarchies: where to look; None is where this process is.

    A machine without usable cgroups gives an object without controllers; `problems` says why.
    """
    branches: list[Branch] = []
    locks: list[int] = []
    problems: dict[str, str] = {}
    for hierarchy in own_hierarchies() if hierarchies is None else hierarchies:
        if hierarchy.version == 1 and not hierarchy.controllers & set(wanted):
            continue
        for base in _bases(hierarchy):
            try:
                found = _open_branch(base, hierarchy, frozenset(wanted))
            except OSError as error:
                problems[base] = error.strerror or str(error)
                continue
            branches.append(found[0])
            locks.append(found[1])
            break
    return Cgroups(branches, locks, problems)


def _bases(hierarchy: Hierarchy) -> Iterator[str]:
    """Yield directories to try, the best first."""
    parent = os.path.dirname(hierarchy.directory)
    if hierarchy.version == 2 and _delegated(parent):
        yield parent
    yield hierarchy.directory


def _delegated(directory: str) -> bool:
    """True when whoever manages the cgroups left this one to us (systemd's Delegate=)."""
    if not os.path.exists(f"{directory}/cgroup.procs"):
        return False
    if os.geteuid() != 0:
        return os.access(directory, os.W_OK) and os.access(f"{directory}/cgroup.procs", os.W_OK)
    for attribute in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, attribute) == b"1":
                return True
    return False


def _open_branch(base: str, hierarchy: Hierarchy, wanted: frozenset[str]) -> tuple[Branch, int]:
    directory, lock = _make_locked(base)
    try:
        # Where it comes along with what is wanted, counting CPU time costs nothing.
        controllers = hierarchy.controllers & (wanted | {"cpuacct"})
        if hierarchy.version == 2:
            controllers = _enable(directory, _enable(base, wanted))
    except OSError:
        os.close(lock)
        with contextlib.suppress(OSError):
            os.rmdir(directory)
        raise
    return Branch(hierarchy.version, controllers, directory), lock


def _make_locked(base: str) -> tuple[str, int]:
    """Make a directory that no sweep will touch. Raises OSError."""
    for _ in range(_ATTEMPTS):
        directory = f"{base}/sandbox-server-{secrets.token_hex(8)}"
        os.mkdir(directory, 0o755)
        lock = -1
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(directory)
        except (BlockingIOError, FileNotFoundError):
            # Another server's sweep came between and took it for a dead one's.
            if lock >= 0:
                os.close(lock)
        else:
            return directory, lock
    raise OSError(errno.EAGAIN, "other servers sweep without end")


def _enable(directory: str, wanted: frozenset[str]) -> frozenset[str]:
    """Give controllers to the cgroups below a directory of version 2; return those that they have."""
    available = wanted & set(read(f"{directory}/cgroup.controllers").split())
    for controller in sorted(available - set(read(f"{directory}/cgroup.subtree_control").split())):
        # EBUSY: there are processes in it. EACCES: not ours to change.
        with contextlib.suppress(OSError):
            write(f"{directory}/cgroup.subtree_control", f"+{controller}")
    return available & set(read(f"{directory}/cgroup.subtree_control").split())


def _names(base: str) -> list[str]:
    try:
        return [name for name in os.listdir(base) if _NAME.fullmatch(name)]
    except OSError:
        return []


def _remove_dead(branch: Branch) -> bool:
    """Remove a server's directory unless somebody holds its lock; True when it is gone."""
    try:
        lock = os.open(branch.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return remove_branch(branch)
    except OSError:
        return False
    finally:
        os.close(lock)
