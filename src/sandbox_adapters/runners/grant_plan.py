"""From regions and what is on the host now to mounts, and to what is to be checked when the command has ended."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox_adapters.runners.child.grant_check import Check, Offence, is_put_aside
from sandbox_adapters.runners.child.grant_check import Region as Checked
from sandbox_adapters.runners.child.grant_mounts import HIDE, LOCK, PIN, READ, WRITE
from sandbox_adapters.runners.child.mount_calls import open_path
from sandbox_adapters.runners.child.tree_scan import (
    GIT_DIRECTORY,
    MOUNT,
    OTHER,
    SOCKET,
    TOO_DEEP,
    UNREADABLE,
    Found,
    TooManyEntries,
    looks_like_git,
    scan,
)
from sandbox_adapters.runners.grants import DENY_WRITE, Access, Grants, Region, expression
from sandbox_core.domain.errors import PolicyRefused, PolicyViolation
from sandbox_core.domain.policy import path_within

MAX_ENTRIES = 500_000
"""Files and directories in one granted directory at the start."""
MAX_MOUNTS = 512
"""For all grants of one execution; each costs about 0.1 ms at its start."""

_STRENGTH = {HIDE: 3, READ: 2, WRITE: 2, LOCK: 1, PIN: 0}


@dataclass(slots=True)
class Plan:
    """What a command with grants gets.

    Args:
        steps: for `grant_mounts.enter`, in order.
        options: for bwrap, with `{stage}` for the directory where the mounts stand.
        checked: writable regions to be looked through at the end.
        tops: of `checked`, each open, so that a directory that is moved meanwhile is still found.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    tops: list[int] = field(default_factory=list)

    def pack(self, stage: str) -> bytes:
        """Return the steps for the launcher's child, without a NUL."""
        return json.dumps({"stage": stage, "steps": self.steps}).encode()

    def check(self) -> tuple[list[Offence], int]:
        """Look through everything that was writable; return what was put aside, and how much is not in the list."""
        offences: list[Offence] = []
        omitted = 0
        for region, top in zip(self.checked, self.tops, strict=True):
            check = Check(region)
            check.run(top)
            offences += check.offences
            omitted += check.omitted
        return offences, omitted

    def close(self) -> None:
        """Let go of the open directories. Again is no error."""
        while self.tops:
            os.close(self.tops.pop())


def make_plan(grants: Grants) -> Plan:
    """Look at the host and plan the mounts. Blocks; a directory with 100,000 files takes about half a second.

    Raises PolicyRefused, which names the field, the path and the reason; then nothing stays open.
    """
    plan = Plan()
    try:
        _Planner(grants, plan).run()
    except BaseException:
        plan.close()
        raise
    return plan


class _Planner:
    def __init__(self, grants: Grants, plan: Plan) -> None:
        self._grants = grants
        self._plan = plan
        self._marks: dict[str, str] = {}
        self._directories: dict[str, bool] = {}
        self._hidden = _compiled(grants.hidden)
        self._locked = _compiled(grants.locked)
        self._boundaries = {region.path for region in grants.regions}

    def run(self) -> None:
        for region in self._grants.regions:
            self._enter(region)
        tops = [region.path for region in self._grants.tops]
        for point in _mount_points():
            for top in tops:
                if point != top and path_within(point, top):
                    self._refuse(self._region(top), f"{point} in it is a mount point; grant directories without any")
        for number, top in enumerate(tops):
            if top in self._marks:
                self._lay_out(number, top)

    def _enter(self, region: Region) -> None:
        """Note what is done at a region's path, and look through it."""
        parent = next((other for other in self._grants.regions if other.path == region.parent), None)
        try:
            descriptor = open_path(region.path)
        except (FileNotFoundError, NotADirectoryError):
            if region.granted and not (region.exempt and parent is not None and parent.access is Access.WRITE):
                self._refuse(region, "it does not exist")
            return
        except OSError as error:
            self._refuse(region, _reason(error))
        try:
            mode = os.stat(descriptor).st_mode
        finally:
            os.close(descriptor)
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            self._refuse(region, "it is neither a directory nor a file")
        self._directories[region.path] = stat.S_ISDIR(mode)
        if region.access is Access.NONE:
            self._mark(region.path, HIDE)
        elif region.granted:
            self._mark(region.path, WRITE if region.access is Access.WRITE else READ)
        else:
            self._mark(region.path, LOCK)
        if region.access is not Access.NONE and stat.S_ISDIR(mode):
            self._look_through(region)

    def _look_through(self, region: Region) -> None:
        writable = region.access is Access.WRITE
        protect = writable and not region.exempt
        known: list[str] = [inner.path for inner in self._grants.below(region.path) if inner.path in self._exists()]
        git: list[str] = []
        top = open_path(region.path, flags=os.O_RDONLY | os.O_DIRECTORY)
        self._plan.tops.append(top)

        def visit(found: Found) -> bool:
            if found.path in self._boundaries:
                return False
            self._directories[found.path] = found.is_directory
            for pattern, mark in ((self._hidden, HIDE), (self._locked, LOCK)):
                if pattern is not None and (mark == HIDE or writable) and pattern.fullmatch(found.path):
                    return self._deny(region, found, mark, known)
            if found.role == SOCKET:
                self._mark(found.path, HIDE)
            if found.is_directory and is_put_aside(found):
                return False
            if found.role in (MOUNT, TOO_DEEP) or (found.role == UNREADABLE and writable and _is_ours(found)):
                self._refuse(region, f"{found.path} cannot be looked through ({found.role})")
            if not protect or found.role in (OTHER, SOCKET, UNREADABLE):
                return True
            if found.role == GIT_DIRECTORY and found.is_directory:
                git.append(found.path)
                self._mark(found.path, PIN)
                return True
            return self._protect(region, found, known)

        try:
            if protect and looks_like_git(top):
                git.append(region.path)
            scan(top, region.path, visit, max_entries=MAX_ENTRIES)
        except TooManyEntries:
            self._refuse(region, f"it has over {MAX_ENTRIES} entries; grant a smaller directory")
        except OSError as error:
            self._refuse(region, _reason(error))
        finally:
            if not writable:
                self._plan.tops.pop()
                os.close(top)
        if writable:
            missing = [
                inner.path for inner in self._grants.below(region.path)
                if not inner.granted and inner.field == DENY_WRITE and inner.path not in known
            ]  # fmt: skip
            exempt = [inner.path for inner in self._grants.below(region.path) if inner.exempt]
            denied = expression([*self._grants.locked, *missing])
            self._plan.checked.append(Checked(region.path, (*known, *exempt), tuple(git), protect, denied))

    def _exists(self) -> set[str]:
        """The regions that there are."""
        found = set()
        for region in self._grants.regions:
            if os.path.lexists(region.path):
                found.add(region.path)
        return found

    def _deny(self, region: Region, found: Found, mark: str, known: list[str]) -> bool:
        if found.is_link:
            self._refuse(region, f"{found.path} is denied and is a symbolic link, which nothing can be mounted on")
        self._mark(found.path, mark)
        known.append(found.path)
        return False

    def _protect(self, region: Region, found: Found, known: list[str]) -> bool:
        """Make a protected name read-only, with whatever it leads to."""
        if found.is_link:
            self._refuse(region, f"{found.path} is a symbolic link with a protected name; put a file in its place")
        self._mark(found.path, LOCK)
        known.append(found.path)
        if found.is_directory:
            scan(found.descriptor, found.path, lambda inner: self._look_in(region, inner), max_entries=MAX_ENTRIES)
        else:
            self._check_links(region, found.path, found)
        return False

    def _look_in(self, region: Region, found: Found) -> bool:
        """In a protected directory: what is there under a second name could be changed by that."""
        self._directories[found.path] = found.is_directory
        if found.path in self._boundaries:
            return False
        if found.role == SOCKET:
            self._mark(found.path, HIDE)
        elif found.is_link:
            self._follow(region, found)
        elif not found.is_directory:
            self._check_links(region, found.path, found)
        return True

    def _follow(self, region: Region, found: Found) -> None:
        """Protect what a link in a protected directory leads to, as a hook that lies among a project's scripts."""
        meant = os.path.normpath(
            os.path.join(os.path.dirname(found.path), os.readlink(found.name, dir_fd=found.parent))
        )
        target = os.path.realpath(meant)
        if not any(self._access(path) is Access.WRITE for path in (meant, target)):
            return
        if target != meant or not os.path.isfile(target):
            self._refuse(region, f"{found.path} is protected and leads to {meant}, which is a link or no file")
        self._directories[target] = False
        self._mark(target, LOCK)

    def _check_links(self, region: Region, path: str, found: Found) -> None:
        if os.stat(found.name, dir_fd=found.parent, follow_symlinks=False).st_nlink > 1:
            self._refuse(
                region, f"{path} is protected and has a second name (a hard link), by which it could be changed"
            )

    def _mark(self, path: str, mark: str) -> None:
        present = self._marks.get(path)
        if present is None or _STRENGTH[mark] > _STRENGTH[present]:
            self._marks[path] = mark

    def _lay_out(self, number: int, top: str) -> None:
        """Turn the marks in one outermost region into steps, outer paths first, and pin what leads to them."""
        inside = {path for path in self._marks if path != top and path_within(path, top)}
        for path in tuple(inside):
            for parent in Path(path).parents:
                way = str(parent)
                if way == top:
                    break
                if way not in self._marks and self._access(way) is Access.WRITE:
                    self._marks[way] = PIN
                    self._directories[way] = True
                    inside.add(way)
        for path in (top, *sorted(inside, key=lambda path: (path.count("/"), path))):
            mark = self._marks[path]
            holes = self._holes(path) if mark == HIDE else []
            step = {
                "kind": mark,
                "path": path,
                "place": f"{number}{path[len(top) :]}",
                "top": path == top,
                "holes": holes,
            }
            self._plan.steps.append(step)
        if len(self._plan.steps) > MAX_MOUNTS:
            self._refuse(self._region(top), f"protecting what is in it needs over {MAX_MOUNTS} mounts; grant less")
        below = any(region.access is Access.WRITE for region in self._grants.below(top))
        writable = below or self._marks[top] == WRITE
        self._plan.options += ["--bind" if writable else "--ro-bind", f"{{stage}}/{number}", top]

    def _holes(self, path: str) -> list[list[Any]]:
        return [
            [region.path[len(path) + 1 :], self._directories[region.path]]
            for region in self._grants.below(path)
            if region.access is not Access.NONE and region.path in self._marks and self._around(region.path) == path
        ]

    def _around(self, path: str) -> str:
        """The innermost hidden directory around a path."""
        hidden = (other for other, mark in self._marks.items() if mark == HIDE and other != path)
        return max((other for other in hidden if path_within(path, other)), key=len, default="")

    def _access(self, path: str) -> Access:
        around = [region for region in self._grants.regions if path_within(path, region.path)]
        return max(around, key=lambda region: len(region.path)).access if around else Access.NONE

    def _region(self, path: str) -> Region:
        return next(region for region in self._grants.regions if region.path == path)

    def _refuse(self, region: Region, reason: str) -> Any:
        raise PolicyRefused([PolicyViolation(region.field, region.path, "what can be granted safely", reason)])


def _compiled(denials: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile(expression(denials)) if denials else None


def _is_ours(found: Found) -> bool:
    return os.stat(found.name, dir_fd=found.parent, follow_symlinks=False).st_uid == os.geteuid()


def _mount_points() -> Iterator[str]:
    """Yield every mount point of this mount namespace (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])


def _reason(error: OSError) -> str:
    known = {
        errno.ELOOP: "a part of it is a symbolic link; name the real path",
        errno.ENOSYS: "this kernel has no openat2, which came with 5.6",
    }
    return known.get(error.errno or 0, error.strerror or repr(error))
