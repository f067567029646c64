"""Neighbours: keeps what one execution made in a granted directory from being taken for the host's own by another.

What lies under a protected name when an execution starts is mounted read-only and not touched at its end. If another
execution that runs in the same directory made it, that one's end renames it, and takes the mount away with it; so what
a neighbour may have made is put aside at the end of both.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from sandbox_adapters.runners.child.grant_check import Region
from sandbox_adapters.runners.child.protected_names import (
    folded,
    is_protected,
    is_protected_in_git,
    is_protected_in_worktree,
)
from sandbox_core.domain.policy import path_within


@dataclass(eq=False, slots=True)
class Presence:
    """One execution with grants, from before its directories are looked at until they were looked through at its end.

    Args:
        regions: what it may write; None while nothing of it can run.
        beside: the others that were there at any time while it looked; empty afterwards.
    """

    regions: tuple[Region, ...] | None = None
    beside: list[Presence] = field(default_factory=list)


class Neighbours:
    """The executions with grants of one runner. Used in one thread."""

    def __init__(self) -> None:
        self._present: set[Presence] = set()

    def arrive(self) -> Presence:
        """Note an execution that is about to look at its directories; `leave` in any case."""
        presence = Presence(beside=list(self._present))
        for other in self._present:
            if other.regions is None:
                other.beside.append(presence)
        self._present.add(presence)
        return presence

    def settle(self, presence: Presence, regions: Iterable[Region], named: Collection[str]) -> tuple[Region, ...]:
        """Return what is to be checked at an execution's end, without trust in what its neighbours may have made.

        Args:
            presence: that execution, which has looked at its directories.
            regions: what it found.
            named: paths that its policy names, which stay as they are.
        """
        others = [region for other in presence.beside for region in other.regions or () if region.protect]
        settled = tuple(_distrusting(region, others, named) for region in regions)
        presence.regions = settled
        presence.beside.clear()
        return settled

    def leave(self, presence: Presence) -> None:
        """Forget an execution: its directories were looked through, or nothing of it ran. Again is no error."""
        self._present.discard(presence)


def _distrusting(region: Region, others: Iterable[Region], named: Collection[str]) -> Region:
    if not region.protect:
        return region
    near = [other for other in others if path_within(other.path, region.path) or path_within(region.path, other.path)]
    if not near:
        return region

    def trusted(path: str) -> bool:
        return path in named or not any(_may_have_made(path, other) for other in near)

    known = {
        path: inode for path, inode in region.known.items() if not _is_protected(path, region.git) or trusted(path)
    }
    return replace(region, known=known, git=tuple(path for path in region.git if trusted(path)))


def _may_have_made(path: str, other: Region) -> bool:
    if not path_within(path, other.path) or path in other.git:
        return False
    return not any(str(part) in other.known for part in (path, *PurePosixPath(path).parents))


def _is_protected(path: str, git: Collection[str]) -> bool:
    folder, name = os.path.split(path)
    above = os.path.basename(os.path.dirname(folder))
    return (
        is_protected(name, os.path.basename(folder))
        or (folder in git and is_protected_in_git(name))
        or (folded(above) == "worktrees" and is_protected_in_worktree(name))
    )
