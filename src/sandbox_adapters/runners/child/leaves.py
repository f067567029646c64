"""The cgroups of the launcher's jobs: made, limited, and removed when nothing runs in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ..hardening.cgroup_leaf import Branch, Leaf, TreeLimits, remove_branch  # noqa: TID252 - see child/__init__.py
from .wire import RunRequest


class Leaves:
    """Hands out leaves below the server's directories; without a directory every leaf is None.

    A directory without controllers beside others that have some only counts CPU time. Each directory makes starts
    slower (on two cores, a tenth fewer a second), so that one is used for jobs with a bound on CPU time alone.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches
        self._limiting = [branch for branch in branches if branch.controllers] or branches
        self._made = 0
        self._unused: list[Leaf] = []

    def make(self, *, counting_cpu: bool = False) -> Leaf | None:
        """Make the next leaf, one that counts CPU time where that is asked for. Raises OSError."""
        branches = self._branches if counting_cpu else self._limiting
        if not branches:
            return None
        self._made += 1
        return Leaf.make(branches, f"{os.getpid()}-{self._made}")

    def usual_do_for(self, request: RunRequest) -> bool:
        """True when a leaf made without asking for anything is enough for a job."""
        return request.tree_cpu_seconds < 0 or len(self._limiting) == len(self._branches)

    def discard(self, leaf: Leaf | None) -> None:
        """Have a leaf removed that nothing is to run in any more, by the next `tidy`."""
        if leaf is not None:
            self._unused.append(leaf)

    @property
    def discarded(self) -> int:
        """How many leaves wait for `tidy`."""
        return len(self._unused)

    def tidy(self) -> None:
        """Remove the discarded leaves, except those that still have something in them: that is killed.

        Waits, like every change of the tree, for a process that is just being moved into a cgroup of version 2: about
        10 ms.
        """
        waiting, self._unused = self._unused, []
        for each in waiting:
            with contextlib.suppress(OSError):
                if not each.remove():
                    each.kill()
                    self._unused.append(each)

    def remove_all(self) -> None:
        """Remove the server's directories too, for when it is gone. Nothing may be running any more."""
        for branch in self._branches:
            remove_branch(branch)


def limit(leaf: Leaf | None, request: RunRequest) -> None:
    """Put the limits of a request on its leaf. Raises OSError, also when there is a limit but no leaf."""
    wanted = TreeLimits(
        memory_bytes=None if request.tree_memory_bytes < 0 else request.tree_memory_bytes,
        processes=None if request.tree_processes < 0 else request.tree_processes,
    )
    if leaf is None:
        leaf = Leaf(())
    leaf.limit(wanted)


def branch_argument(branch: Branch) -> str:
    """Write a branch as a program's argument."""
    return f"{branch.version}:{','.join(sorted(branch.controllers))}:{branch.directory}"


def branch_of(argument: str) -> Branch:
    """Read what `branch_argument` wrote."""
    version, controllers, directory = argument.split(":", 2)
    return Branch(int(version), frozenset(filter(None, controllers.split(","))), directory)
