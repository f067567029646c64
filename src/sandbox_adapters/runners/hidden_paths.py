"""What a policy denies of the system that every command can read: an empty, unreadable file or directory over it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sandbox_adapters.runners.child.path_patterns import WILDCARD
from sandbox_adapters.runners.runtime_directory import hidden_directory, hidden_file, shown_directories
from sandbox_core.domain.errors import PolicyRefused, PolicyViolation
from sandbox_core.domain.policy import FilesystemPolicy, inside_sandbox, path_within

ROOTS = ("/usr", "/etc")
"""Below these something can be hidden: root's on the host, so that nobody exchanges what is looked at meanwhile."""
MAX_HIDDEN = 128
"""Of one execution; each costs a mount, which takes about a tenth of a millisecond."""

_FIELD = "filesystem.deny_read"


def can_hide(path: str, policy: FilesystemPolicy) -> bool:
    """True when `path`, of the policy's `deny_read`, names something below ROOTS, and nothing in it is to be seen."""
    if path.startswith("~") or WILDCARD.search(path):
        return False
    full = inside_sandbox(path)
    if not any(full != root and path_within(full, root) for root in ROOTS):
        return False
    asked = (inside_sandbox(read) for read in policy.allow_read if not read.startswith("~"))
    return not any(read != full and path_within(read, full) for read in asked)


def hidden_paths(policy: FilesystemPolicy) -> tuple[str, ...]:
    """Return what is to be hidden, as the sandbox sees it; nothing in something else that is hidden."""
    paths = {inside_sandbox(path) for path in policy.deny_read if can_hide(path, policy)}
    return tuple(sorted(path for path in paths if not any(path_within(path, other) for other in paths - {path})))


def hiding_options(paths: tuple[str, ...], etc: Path) -> tuple[str, ...]:
    """Return bwrap's options that hide `paths`, which are `hidden_paths`, in a sandbox that sees `etc` as /etc.

    What is not there needs none. Raises PolicyRefused for more than MAX_HIDDEN, and for a path with a symbolic link in
    it: what it leads to would be seen by its own name.
    """
    if len(paths) > MAX_HIDDEN:
        reason = f"{len(paths)} paths below {' and '.join(ROOTS)} would have to be hidden; deny a directory around them"
        raise PolicyRefused([PolicyViolation(_FIELD, paths[MAX_HIDDEN], f"at most {MAX_HIDDEN}", reason)])
    options: list[str] = []
    for path in paths:
        try:
            kind = _kind(path, etc)
        except OSError as error:
            raise PolicyRefused(
                [PolicyViolation(_FIELD, path, "a path that can be looked at", error.strerror or str(error))]
            ) from error
        if kind is not None:
            empty = hidden_directory(etc) if stat.S_ISDIR(kind) else hidden_file(etc)
            options += ["--ro-bind", str(empty), path]
    return tuple(options)


def _kind(path: str, etc: Path) -> int | None:
    """Return the mode of what a sandbox has at `path`, None for nothing. Raises OSError, PolicyRefused for a link."""
    names = path.strip("/").split("/")
    mode = None
    for count in range(1, len(names) + 1):
        part = "/" + "/".join(names[:count])
        try:
            mode = os.lstat(_on_host(part, etc)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            reason = f"{part} is a symbolic link; name what it leads to"
            raise PolicyRefused([PolicyViolation(_FIELD, path, "a path without symbolic links", reason)])
    return mode


def _on_host(path: str, etc: Path) -> str:
    if not path_within(path, "/etc") or any(path_within(path, shown) for shown in shown_directories(etc)):
        return path
    return f"{etc}{path.removeprefix('/etc')}"
