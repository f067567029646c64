"""Look through a directory that somebody hostile may be changing, and say what in it is of interest."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .mount_calls import RESOLVE_NO_XDEV, open_path
from .protected_names import (
    GIT,
    GIT_LAYOUT,
    WORKTREE_LAYOUT,
    folded,
    is_protected,
    is_protected_in_git,
    is_protected_in_worktree,
)

MAX_DEPTH = 64
"""Levels below the top; each takes a descriptor while it is looked through."""

OTHER, PROTECTED, GIT_DIRECTORY, SPECIAL = "other", "protected", "git", "special"
TOO_DEEP, UNREADABLE, MOUNT = "too deep", "unreadable", "a mount point"
"""Roles of an entry. A git directory is one called `.git`, or one that git would take for its own. The last three are
directories that were not looked into. A special file is a socket, a named pipe or a device."""

QUARANTINED = ".sandbox-quarantined-"
"""In the name of everything that was put aside."""

_PLAIN, _GIT, _WORKTREES, _WORKTREE = range(4)


class TooMuch(Exception):
    """The tree has more entries, or takes longer, than it may; the text is a clause that says which."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry. `parent` and, for a directory that could be opened, `descriptor` are open while it is visited."""

    path: str
    name: str
    role: str
    is_directory: bool
    is_link: bool
    parent: int
    descriptor: int = -1


@dataclass(slots=True)
class _Level:
    path: str
    kind: int
    descriptor: int
    entries: Iterator[os.DirEntry[str]] = field(init=False)
    _stop: Callable[[], None] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = listing = os.scandir(self.descriptor)
        self._stop = listing.close

    def close(self) -> None:
        self._stop()
        os.close(self.descriptor)


def scan(top: int, path: str, visit: Callable[[Found], bool], *, plain: bool, max_entries: int, seconds: float) -> int:
    """Call `visit` with everything below a directory, parents first; where it returns False nothing below is visited.

    Follows no link, enters no other file system, and needs the same memory however large the tree is.

    Args:
        top: the directory, open for reading; stays open.
        path: what `top` is called.
        visit: called with each entry.
        plain: also with files and links that have no role; much faster without.
        max_entries: how many are looked at.
        seconds: how long it may take.

    Returns how many entries there were. Raises TooMuch, and OSError when `top` cannot be read.
    """
    kind = _GIT if folded(os.path.basename(path)) == GIT else _kind_by_layout(top)
    levels = [_Level(path, kind, os.dup(top))]
    seen, deadline = 0, time.monotonic() + seconds
    try:
        while levels:
            level = levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                levels.pop().close()
                continue
            seen += 1
            if seen > max_entries:
                raise TooMuch(f"it has over {max_entries} entries")
            if time.monotonic() > deadline:
                raise TooMuch(f"looking through it takes over {seconds:g} s")
            deeper = _look(level, entry, visit, plain=plain, too_deep=len(levels) >= MAX_DEPTH)
            if deeper is not None:
                levels.append(deeper)
    finally:
        for level in levels:
            level.close()
    return seen


def looks_like_git(directory: int) -> bool:
    """True when git would take an open directory for one of its own."""
    return all(_exists(name, directory) for name in GIT_LAYOUT)


def _look(
    level: _Level, entry: os.DirEntry[str], visit: Callable[[Found], bool], *, plain: bool, too_deep: bool
) -> _Level | None:
    """Visit one entry and return its level when it is to be looked through."""
    name = entry.name
    try:
        is_directory, is_link = entry.is_dir(follow_symlinks=False), entry.is_symlink()
        is_special = not (is_directory or is_link or entry.is_file(follow_symlinks=False))
    except OSError:
        return None  # gone
    role = _role(level, name)
    if is_special and role == OTHER:
        role = SPECIAL
    if role == OTHER and not (plain or is_directory):
        return None
    path = f"{level.path}/{name}"
    if not is_directory:
        visit(Found(path, name, role, is_directory, is_link, level.descriptor))
        return None
    try:
        folder = open_path(name, below=level.descriptor, flags=os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV):
            role = MOUNT if error.errno == errno.EXDEV else UNREADABLE
            visit(Found(path, name, role, is_directory, is_link, level.descriptor))
        return None
    kept = False
    try:
        kind = _kind(level, name, folder)
        if role == OTHER and kind == _GIT:
            role = GIT_DIRECTORY
        if too_deep and role == OTHER:
            role = TOO_DEEP
        if visit(Found(path, name, role, is_directory, is_link, level.descriptor, folder)) and not too_deep:
            deeper = _Level(path, kind, folder)
            kept = True
            return deeper
        return None
    finally:
        if not kept:
            os.close(folder)


def _role(level: _Level, name: str) -> str:
    if level.kind == _GIT and is_protected_in_git(name):
        return PROTECTED
    if level.kind == _WORKTREE and is_protected_in_worktree(name):
        return PROTECTED
    if not is_protected(name, os.path.basename(level.path)):
        return OTHER
    return GIT_DIRECTORY if folded(name) == GIT else PROTECTED


def _kind(level: _Level, name: str, folder: int) -> int:
    if folded(name) == GIT:
        return _GIT
    if level.kind == _GIT and folded(name) == "worktrees" and not looks_like_git(folder):
        return _WORKTREES
    kind = _kind_by_layout(folder)
    return _WORKTREE if kind == _PLAIN and level.kind == _WORKTREES else kind


def _kind_by_layout(folder: int) -> int:
    if looks_like_git(folder):
        return _GIT
    return _WORKTREE if all(_exists(name, folder) for name in WORKTREE_LAYOUT) else _PLAIN


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True
