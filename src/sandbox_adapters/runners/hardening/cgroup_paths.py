"""Where this process stands in the machine's cgroups (cgroups(7), proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy: its version (1 or 2), its controllers, and the directory of this process's cgroup.

    `controllers` is what the mount offers; in version 2 what a cgroup may really use is in its own files.
    """

    version: int
    controllers: frozenset[str]
    directory: str


def own_hierarchies(proc: str = "/proc/self") -> list[Hierarchy]:
    """Return every hierarchy whose directory for this process can be seen; none when there are no cgroups.

    A directory counts only when it lists this process, since what a container shows at the path may be another's.
    """
    try:
        with open(f"{proc}/cgroup") as memberships, open(f"{proc}/mountinfo") as mounts:
            paths = _paths(memberships.read())
            lines = mounts.read().splitlines()
    except OSError:
        return []
    found: dict[frozenset[str], Hierarchy] = {}
    for line in lines:
        hierarchy = _hierarchy(line, paths)
        if hierarchy and hierarchy.controllers not in found and _lists_this_process(hierarchy.directory):
            found[hierarchy.controllers] = hierarchy
    return list(found.values())


def read(path: str) -> str:
    """Return a cgroup file's text. Raises OSError."""
    # Without a file object, which would ask the kernel five more questions about a file that has no answers.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
        return b"".join(pieces).decode()
    finally:
        os.close(descriptor)


def write(path: str, text: str) -> None:
    """Write a cgroup file in one system call, as they ask for. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _paths(memberships: str) -> dict[frozenset[str], str]:
    """Map each hierarchy's controllers, none for version 2, to the path of this process in it."""
    paths = {}
    for line in memberships.splitlines():
        number, controllers, path = line.split(":", 2)
        paths[frozenset(controllers.split(",")) if number != "0" else frozenset()] = path
    return paths


def _hierarchy(mount: str, paths: dict[frozenset[str], str]) -> Hierarchy | None:
    before, _, after = mount.partition(" - ")
    kind, _, options = after.split(" ", 2)
    if kind not in ("cgroup", "cgroup2"):
        return None
    root, point = (_unescape(field) for field in before.split(" ")[3:5])
    offered = frozenset(options.split(","))
    for controllers, path in paths.items():
        if (kind == "cgroup2") != (not controllers) or not controllers <= offered:
            continue
        # A path that climbs out lies above the root of this process's cgroup namespace.
        inside = os.path.relpath(path, root)
        if inside != ".." and not inside.startswith("../") and ".." not in path.split("/"):
            return Hierarchy(2 if kind == "cgroup2" else 1, controllers, os.path.normpath(f"{point}/{inside}"))
    return None


def _lists_this_process(directory: str) -> bool:
    try:
        return str(os.getpid()) in read(f"{directory}/cgroup.procs").split()
    except OSError:
        return False


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
