"""Bound how many files the private file systems of a sandbox may have; bwrap has an option for their bytes only."""

from __future__ import annotations

import os
import signal
import time

from .kernel import remount

PATHS = ("/workspace", "/tmp", "/dev/shm")  # noqa: S108 - the sandbox's own
_POLL_SECONDS = 0.0003


def wait_for_mounts(process: int) -> None:
    """Return when bwrap has made every mount; `process` is the open /proc directory of the sandbox's pid 1.

    Nobody tells when that is: bwrap reports its child before. Its last steps make what it mounted the root, and take
    the old root away from above it; until then the places are the host's, or not there. The caller bounds the wait.
    """
    host = {device for _, device in _mounts("/proc/self/mountinfo")}
    while True:
        try:
            seen = _mounts("mountinfo", directory=process)
        except OSError:
            # It has ended. bwrap will, and can say why; then the launcher ends this helper.
            signal.pause()
            continue
        devices = dict(seen)
        alone = sum(point == "/" for point, _ in seen) == 1
        if alone and all(path in devices and devices[path] not in host for path in PATHS):
            return
        time.sleep(_POLL_SECONDS)


def bound(inodes: int) -> None:
    """Bound each file system to so many, for a caller that is in the sandbox's namespaces. Raises OSError."""
    for path in PATHS:
        remount(path, f"nr_inodes={inodes}")


def _mounts(path: str, *, directory: int | None = None) -> list[tuple[str, str]]:
    """Return the mount points and their devices, of one point the topmost last (proc_pid_mountinfo(5))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(descriptor, encoding="utf-8", errors="surrogateescape") as mounts:
        return [(fields[4], fields[2]) for fields in map(str.split, mounts)]
