"""After an execution with writable grants: put aside what it made under a name that something on the host would run.

What was there at the start is mounted so that it cannot be changed (`grant_mounts`). A name that was not there cannot
be kept from being made without making something of that name on the host, so it is found afterwards, before anybody is
told that the execution has ended, and renamed: `.envrc` becomes `.envrc.sandbox-quarantined-1f2e3d4c`, and a directory
loses every right. What is to be checked is written down before the start, so that also a server that was killed has it
checked: by its launcher, or by the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .mount_calls import open_path
from .path_patterns import PathPatterns
from .protected_names import ANYWHERE, GIT, GIT_LAYOUT, folded
from .tree_scan import (
    GIT_DIRECTORY,
    OTHER,
    PROTECTED,
    QUARANTINED,
    TOO_DEEP,
    UNREADABLE,
    Found,
    TooMuch,
    looks_like_git,
    scan,
)

JOURNAL = "granted"
"""Directory of what is still to be checked, in a runtime directory."""
MAX_ENTRIES = 2_000_000
MAX_SECONDS = 60.0
"""For one directory; a million entries take about six."""
RULE_PROTECTED, RULE_DENIED = "protected names", "filesystem.deny_write"

_MAX_KEPT = 1000
_LONGEST_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Region:
    """A writable directory of an execution.

    Args:
        path: the directory.
        known: paths that are protected by mounts, or are regions of their own, with their inodes; 0 for any.
        git: git directories that were there at the start; what they execute is protected inside.
        protect: look for protected names; False where the operator's ceiling names the path itself.
        denied: paths that must not be made, as PathPatterns takes them.
    """

    path: str
    known: Mapping[str, int]
    git: tuple[str, ...]
    protect: bool
    denied: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Region:
        """Return one from its JSON."""
        return cls(fields["path"], fields["known"], tuple(fields["git"]), fields["protect"], tuple(fields["denied"]))


@dataclass(frozen=True, slots=True)
class Offence:
    """Something that must not be there. `moved_to` is its new name, "" when it stays, and `problem` says why."""

    path: str
    rule: str
    moved_to: str
    problem: str = ""


@dataclass(slots=True)
class Check:
    """Checks one region; `offences` are what was found, `omitted` how many more."""

    region: Region
    offences: list[Offence] = field(default_factory=list)
    omitted: int = 0

    def run(self, top: int) -> None:
        """Look through the directory that `top` has open for reading, and put aside what must not be there."""
        region = self.region
        git = frozenset(region.git)
        denied = PathPatterns(region.denied)

        def visit(found: Found) -> bool:
            if found.path in region.known:
                self._compare(found, region.known[found.path])
                return False
            if denied.match(found.path):
                self._put_aside(found, RULE_DENIED)
                return False
            if found.is_directory and is_put_aside(found):
                return False
            if found.role == UNREADABLE:
                if _is_ours(found):
                    self._put_aside(found, RULE_PROTECTED)
                return False
            if found.role == TOO_DEEP:
                self._put_aside(found, RULE_PROTECTED)
                return False
            if not region.protect or found.role == OTHER or found.path in git:
                return True
            if found.role == PROTECTED or (found.role == GIT_DIRECTORY and folded(found.name) == GIT):
                self._put_aside(found, RULE_PROTECTED)
                return False
            if found.role == GIT_DIRECTORY:
                self._disarm(found.path, found.descriptor)
            return True

        if region.protect and region.path not in git and looks_like_git(top):
            self._disarm(region.path, top)
        try:
            scan(top, region.path, visit, plain=bool(denied), max_entries=MAX_ENTRIES, seconds=MAX_SECONDS)
        except TooMuch as error:
            self._note(Offence(region.path, RULE_PROTECTED, "", f"{error}, the rest is unchecked"))
            if region.protect:
                self._put_aside_by_name(top)
        except OSError as error:
            self._note(Offence(region.path, RULE_PROTECTED, "", f"it cannot be checked: {error.strerror}"))

    def _put_aside_by_name(self, top: int) -> None:
        """In a directory with too much to look through: what is in the directory itself, where it can do most."""
        region = self.region
        for name in sorted((GIT, *ANYWHERE)):
            path = f"{region.path}/{name}"
            if path in region.known or path in region.git:
                continue
            descriptor = -1
            try:
                with contextlib.suppress(OSError):
                    descriptor = open_path(name, below=top, flags=os.O_RDONLY | os.O_DIRECTORY)
                self._put_aside(Found(path, name, PROTECTED, descriptor >= 0, False, top, descriptor), RULE_PROTECTED)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def _compare(self, found: Found, inode: int) -> None:
        """Tell of what was replaced from outside: removing what a mount stands on removes the mount everywhere."""
        with contextlib.suppress(OSError):
            if inode and os.stat(found.name, dir_fd=found.parent, follow_symlinks=False).st_ino != inode:
                self._note(Offence(found.path, RULE_PROTECTED, "", "it was replaced on the host meanwhile"))

    def _disarm(self, path: str, directory: int) -> None:
        """Make a directory that git would take for its own an ordinary one."""
        name = GIT_LAYOUT[0]
        self._put_aside(Found(f"{path}/{name}", name, PROTECTED, False, False, directory), RULE_PROTECTED)

    def _put_aside(self, found: Found, rule: str) -> None:
        name = os.fsdecode(os.fsencode(found.name)[:_LONGEST_NAME_BYTES]) + QUARANTINED + secrets.token_hex(4)
        try:
            _rename(found.parent, found.name, name)
            if found.descriptor >= 0:
                os.fchmod(found.descriptor, 0)
        except FileNotFoundError:
            return
        except OSError as error:
            self._note(Offence(found.path, rule, "", f"it cannot be renamed: {error.strerror}"))
        else:
            self._note(Offence(found.path, rule, name))

    def _note(self, offence: Offence) -> None:
        if len(self.offences) < _MAX_KEPT:
            self.offences.append(offence)
        else:
            self.omitted += 1


def is_put_aside(found: Found) -> bool:
    """True for a directory that was put aside and that nobody has opened up since."""
    if QUARANTINED not in found.name:
        return False
    try:
        mode = os.stat(found.name, dir_fd=found.parent, follow_symlinks=False).st_mode
    except OSError:
        return False
    return stat.S_IMODE(mode) == 0


def write_journal(directory: str, name: str, regions: Sequence[Region]) -> None:
    """Write down what is to be checked; `forget` when it was. Raises OSError."""
    folder = os.path.join(directory, JOURNAL)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    with open(os.path.join(folder, name), "x", encoding="ascii") as file:
        json.dump([asdict(region) for region in regions], file)


def forget(directory: str, name: str) -> None:
    """Strike out what was checked. Again is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, JOURNAL, name))


def recover(directory: str) -> None:
    """Check what executions in a runtime directory whose server is gone left unchecked. Raises nothing.

    Nothing of these executions may be running any more.
    """
    folder = os.path.join(directory, JOURNAL)
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        # Cut off while it was written means that its execution was not started.
        with contextlib.suppress(OSError, ValueError):
            with open(os.path.join(folder, name), encoding="ascii") as file:
                regions = [Region.of(fields) for fields in json.load(file)]
            for region in regions:
                with contextlib.suppress(OSError):
                    top = open_path(region.path, flags=os.O_RDONLY | os.O_DIRECTORY)
                    try:
                        Check(region).run(top)
                    finally:
                        os.close(top)
        forget(directory, name)


def _rename(parent: int, old: str, new: str) -> None:
    try:
        os.rename(old, new, src_dir_fd=parent, dst_dir_fd=parent)
    except PermissionError:
        # A directory of ours whose rights the program took away.
        mode = stat.S_IMODE(os.fstat(parent).st_mode)
        os.fchmod(parent, mode | stat.S_IRWXU)
        try:
            os.rename(old, new, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.fchmod(parent, mode)


def _is_ours(found: Found) -> bool:
    """Whether what a server that is not root cannot read is its own, so that the program could have made it so."""
    try:
        return os.stat(found.name, dir_fd=found.parent, follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False
