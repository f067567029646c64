"""From regions and what is on the host now to mounts, and to what is to be checked when the command has ended."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from sandbox_adapters.runners.child.grant_check import Check, Offence, is_put_aside
from sandbox_adapters.runners.child.grant_check import Region as Checked
from sandbox_adapters.runners.child.grant_mounts import HIDE, LOCK, PIN, READ, WRITE
from sandbox_adapters.runners.child.mount_calls import open_path
from sandbox_adapters.runners.child.path_patterns import PathPatterns
from sandbox_adapters.runners.child.protected_names import GIT
from sandbox_adapters.runners.child.tree_scan import (
    GIT_DIRECTORY,
    MOUNT,
    OTHER,
    SPECIAL,
    TOO_DEEP,
    UNREADABLE,
    Found,
    TooMuch,
    looks_like_git,
    scan,
)
from sandbox_adapters.runners.git_config import paths_of_config
from sandbox_adapters.runners.grant_steps import access_at, steps_of
from sandbox_adapters.runners.grants import DENY_WRITE, NO_OPENAT2, Access, Grants, Region, host_path
from sandbox_core.domain.errors import PolicyRefused, PolicyViolation
from sandbox_core.domain.policy import path_within

MAX_ENTRIES = 500_000
"""Files and directories in one granted directory at the start."""
MAX_SECONDS = 20.0
"""For looking through one of them."""
MAX_MOUNTS = 1024
"""For all grants of one execution; each costs about a millisecond at its start."""

_GIT_CONFIGS = ("config", "config.worktree")
_MAX_CONFIG_BYTES = 1 << 20
_TOO_MANY_MOUNTS = f"protecting what is in it needs over {MAX_MOUNTS} mounts; grant less"
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


@dataclass(slots=True)
class _LookedThrough:
    """What was found in a writable region: protected paths with their inodes, and git directories."""

    region: Region
    protect: bool
    known: dict[str, int]
    git: list[str] = field(default_factory=list)


class _Planner:
    def __init__(self, grants: Grants, plan: Plan) -> None:
        self._grants = grants
        self._plan = plan
        self._marks: dict[str, str] = {}
        self._directories: dict[str, bool] = {}
        self._hidden = PathPatterns(map(host_path, grants.hidden))
        self._locked = PathPatterns(map(host_path, grants.locked))
        self._missing: list[str] = []
        self._targets: list[tuple[Region, str]] = []
        self._looked_through: list[_LookedThrough] = []
        self._has_patterns = bool(grants.hidden or grants.locked)
        self._boundaries = {region.path for region in grants.regions}

    def run(self) -> None:
        for region in self._grants.regions:
            self._enter(region)
        self._look_in_targets()
        tops = [region.path for region in self._grants.tops]
        for point in _mount_points():
            for top in tops:
                if point != top and path_within(point, top):
                    self._refuse(self._region(top), f"{point} in it is a mount point; grant directories without any")
        for number, top in enumerate(tops):
            if top in self._marks:
                self._lay_out(number, top)
        denied = (*map(host_path, self._grants.locked), *self._missing)
        for seen in self._looked_through:
            self._plan.checked.append(Checked(seen.region.path, seen.known, tuple(seen.git), seen.protect, denied))

    def _enter(self, region: Region) -> None:
        """Note what is done at a region's path, and look through it."""
        parent = next((other for other in self._grants.regions if other.path == region.parent), None)
        try:
            descriptor = open_path(region.path)
        except (FileNotFoundError, NotADirectoryError):
            if region.granted and not (region.exempt and parent is not None and parent.access is Access.WRITE):
                self._refuse(region, "it does not exist")
            if region.field == DENY_WRITE:
                self._missing.append(region.path)
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
        inside = {inner.path: (inner, _inode(inner.path)) for inner in self._grants.below(region.path)}
        known = {path: inode for path, (inner, inode) in inside.items() if inode or inner.exempt}
        seen = _LookedThrough(region, writable and not region.exempt, known)
        top = open_path(region.path, flags=os.O_RDONLY | os.O_DIRECTORY)
        self._plan.tops.append(top)

        def visit(found: Found) -> bool:
            if found.path in self._boundaries:
                return False
            for pattern, mark in ((self._hidden, HIDE), (self._locked, LOCK)):
                if (mark == HIDE or writable) and pattern.match(found.path):
                    return self._deny(seen, found, mark)
            if found.role == SPECIAL:
                self._mark(found.path, HIDE)
            if found.is_directory and is_put_aside(found):
                return False
            if found.role in (MOUNT, TOO_DEEP) or (found.role == UNREADABLE and writable and _is_ours(found)):
                self._refuse(region, f"{found.path} cannot be looked through ({found.role})")
            if not seen.protect or found.role in (OTHER, SPECIAL, UNREADABLE):
                return True
            if found.role == GIT_DIRECTORY and found.is_directory:
                seen.git.append(found.path)
                self._mark(found.path, PIN)
                return True
            return self._protect(seen, found)

        try:
            if seen.protect and looks_like_git(top):
                seen.git.append(region.path)
            scan(top, region.path, visit, plain=self._has_patterns, max_entries=MAX_ENTRIES, seconds=MAX_SECONDS)
        except TooMuch as error:
            self._refuse(region, f"{error}; grant a smaller directory")
        except OSError as error:
            self._refuse(region, _reason(error))
        finally:
            if not writable:
                self._plan.tops.pop()
                os.close(top)
        if writable:
            self._looked_through.append(seen)

    def _deny(self, seen: _LookedThrough, found: Found, mark: str) -> bool:
        if found.is_link:
            text = f"{found.path} is denied and is a symbolic link, which nothing can be mounted on"
            self._refuse(seen.region, text)
        self._mark(found.path, mark)
        seen.known[found.path] = _inode(found.path)
        return False

    def _protect(self, seen: _LookedThrough, found: Found) -> bool:
        """Make a protected name read-only, with whatever it leads to."""
        if found.is_link:
            self._refuse(seen.region, f"{found.path} is a symbolic link with a protected name; put a file in its place")
        self._mark(found.path, LOCK)
        seen.known[found.path] = _inode(found.path)
        if found.is_directory:
            scan(
                found.descriptor,
                found.path,
                partial(self._look_in, seen.region),
                plain=True,
                max_entries=MAX_ENTRIES,
                seconds=MAX_SECONDS,
            )
            return False
        self._check_links(seen.region, found.path)
        if found.name in _GIT_CONFIGS and os.path.dirname(found.path) in seen.git:
            self._read_config(seen.region, found)
        return False

    def _read_config(self, region: Region, found: Found) -> None:
        """Protect also where a repository's configuration says that its hooks are."""
        folder = os.path.dirname(found.path)
        worktree = os.path.dirname(folder) if os.path.basename(folder) == GIT else folder
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(found.name, flags, dir_fd=found.parent), "rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
        if len(text) > _MAX_CONFIG_BYTES:
            self._refuse(region, f"{found.path} is too long to be understood")
        for path in paths_of_config(os.fsdecode(text), folder=folder, worktree=worktree):
            if access_at(self._grants, path) is Access.WRITE:
                self._lock_target(region, path, f"git runs or reads {path} because of {found.path}, and it")

    def _look_into(self, region: Region, top: int, path: str) -> None:
        """Look through a protected directory."""
        visit = partial(self._look_in, region)
        try:
            scan(top, path, visit, plain=True, max_entries=MAX_ENTRIES, seconds=MAX_SECONDS)
        except TooMuch as error:
            self._refuse(region, f"{path} is protected, and {error}")

    def _look_in(self, region: Region, found: Found) -> bool:
        """In a protected directory: what is there under a second name could be changed by that."""
        if found.path in self._boundaries:
            return False
        if found.role == SPECIAL:
            self._mark(found.path, HIDE)
        elif found.is_link:
            self._follow(region, found)
        elif not found.is_directory:
            self._check_links(region, found.path)
        return True

    def _follow(self, region: Region, found: Found) -> None:
        """Protect what a link in a protected directory leads to, as a hook that lies among a project's scripts."""
        words = os.readlink(found.name, dir_fd=found.parent)
        meant = os.path.normpath(os.path.join(os.path.dirname(found.path), words))
        if any(access_at(self._grants, path) is Access.WRITE for path in (meant, os.path.realpath(meant))):
            self._lock_target(region, meant, f"{found.path} is protected and leads to {meant}, which")

    def _lock_target(self, region: Region, path: str, what: str) -> None:
        """Make a path read-only that is not protected by its name; `what` begins a sentence about it."""
        if self._marks.get(path) == LOCK:
            return
        if os.path.realpath(path) != path:
            self._refuse(region, f"{what} is reached through a symbolic link")
        if any(path_within(other, path) for other in self._boundaries):
            self._refuse(region, f"{what} is, or is around, a directory with rules of its own")
        if not os.path.lexists(path):
            self._missing.append(path)
            return
        self._mark(path, LOCK)
        if os.path.isdir(path):
            self._targets.append((region, path))
        else:
            self._check_links(region, path)

    def _look_in_targets(self) -> None:
        """Look through the directories that were found to need protection; one may lead to the next."""
        while self._targets:
            region, path = self._targets.pop()
            if len(self._marks) > MAX_MOUNTS:
                self._refuse(region, _TOO_MANY_MOUNTS)
            top = open_path(path, flags=os.O_RDONLY | os.O_DIRECTORY)
            try:
                scan(
                    top, path, partial(self._look_in, region), plain=True, max_entries=MAX_ENTRIES, seconds=MAX_SECONDS
                )
            finally:
                os.close(top)

    def _check_links(self, region: Region, path: str) -> None:
        if os.lstat(path).st_nlink > 1:
            text = f"{path} is protected and has a second name (a hard link), by which it could be changed"
            self._refuse(region, text)

    def _mark(self, path: str, mark: str) -> None:
        present = self._marks.get(path)
        if present is None or _STRENGTH[mark] > _STRENGTH[present]:
            self._marks[path] = mark

    def _lay_out(self, number: int, top: str) -> None:
        if len(self._marks) <= MAX_MOUNTS:
            self._plan.steps += steps_of(number, top, self._marks, self._directories, self._grants)
        if max(len(self._marks), len(self._plan.steps)) > MAX_MOUNTS:
            self._refuse(self._region(top), _TOO_MANY_MOUNTS)
        below = any(region.access is Access.WRITE for region in self._grants.below(top))
        writable = below or self._marks[top] == WRITE
        self._plan.options += ["--bind" if writable else "--ro-bind", f"{{stage}}/{number}", top]

    def _region(self, path: str) -> Region:
        return next(region for region in self._grants.regions if region.path == path)

    def _refuse(self, region: Region, reason: str) -> NoReturn:
        raise PolicyRefused([PolicyViolation(region.field, region.path, "what can be granted safely", reason)])


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


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
        errno.ENOSYS: NO_OPENAT2,
    }
    return known.get(error.errno or 0, error.strerror or repr(error))
