"""What a job with grants does before it is bwrap: a mount namespace of its own that has what is granted.

Everything is opened by descriptor, through no symbolic link, and mounted by descriptor, so that nobody can change what
a name means between the look and the mount. The finished trees stand on a tmpfs of this namespace, where bwrap finds
them by number; nothing is ever made on the host.

A server that is root has a kernel uid for each execution, which owns nothing: its mounts get a map of ids
(mount_setattr(2), MOUNT_ATTR_IDMAP) in which the owner of what is granted is the sandbox's user. Any other server makes
a user namespace in which it may mount.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from typing import Any

from .mount_calls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    attach_mount,
    clone_mount,
    limit_mount,
    make_private,
    mount_tmpfs,
    open_path,
    unshare,
)

READ, WRITE, HIDE, PIN, LOCK = "read", "write", "hide", "pin", "lock"
"""What is done to a path: a host path mounted read-only or writable; hidden by an empty, unreadable file or directory;
bound onto itself, which keeps it from being renamed; the same, read-only."""

_HIDDEN_FILE, _HIDDEN_DIRECTORY = "hidden-file", "hidden-directory"
_STAGE_OPTIONS = "size=4m,nr_inodes=4096,mode=0755"


class GrantFailed(OSError):
    """A grant that cannot be mounted; `strerror` says which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EPERM, f"the grant of {path!r} cannot be mounted: {reason}")


def enter(plan: bytes, uid: int, *, follow_links: bool = False) -> None:
    """Move this process into a mount namespace that has everything of a plan. Raises OSError.

    Args:
        plan: `grant_plan.Plan.pack`.
        uid: uid and gid of the job; -1 when they are the launcher's, which is then not root.
        follow_links: for the test that shows what happens then.
    """
    wanted: dict[str, Any] = json.loads(plan)
    stage: str = wanted["stage"]
    mask = os.umask(0)
    try:
        if uid >= 0:
            unshare(CLONE_NEWNS)
        else:
            _enter_own_namespaces()
        make_private()
        mount_tmpfs(stage, _STAGE_OPTIONS)
    except OSError as error:
        raise GrantFailed(stage, f"no mount namespace can be made ({error.strerror})") from error
    mounter = _Mounter(stage, uid, follow_links=follow_links)
    mounter.make_hidden()
    for step in wanted["steps"]:
        try:
            mounter.do(**step)
        except OSError as error:
            raise GrantFailed(step["path"], _reason(error)) from error
    os.umask(mask)


class _Mounter:
    def __init__(self, stage: str, uid: int, *, follow_links: bool) -> None:
        self._stage = stage
        self._follow_links = follow_links
        self._uid = uid
        self._maps: dict[tuple[int, int], int] = {}

    def make_hidden(self) -> None:
        os.mkdir(f"{self._stage}/{_HIDDEN_DIRECTORY}", 0)
        os.close(os.open(f"{self._stage}/{_HIDDEN_FILE}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0))

    def do(self, kind: str, path: str, place: str, top: bool, holes: list[list[Any]]) -> None:
        """Do one step.

        Args:
            kind: READ, WRITE, HIDE, PIN or LOCK.
            path: on the host.
            place: where, below the stage.
            top: nothing is there yet to be mounted on.
            holes: for HIDE: places below it for later steps, and whether each is a directory.
        """
        if kind in (READ, WRITE):
            source = os.open(path, os.O_PATH | os.O_CLOEXEC) if self._follow_links else open_path(path)
            if os.readlink(f"/proc/self/fd/{source}") != path and not self._follow_links:
                raise GrantFailed(path, "it was moved")
            mount = clone_mount(source)
            limit_mount(mount, read_only=kind == READ, id_map=self._id_map(source))
        elif kind == HIDE:
            source = self._hidden(place, holes)
            mount = clone_mount(source)
            limit_mount(mount, read_only=True)
        else:
            source = self._open(place)
            mount = clone_mount(source)
            limit_mount(mount, read_only=kind == LOCK)
        if top:
            _make_place(f"{self._stage}/{place}", is_directory=_is_directory(source))
        target = self._open(place)
        if _is_directory(source) != _is_directory(target):
            raise GrantFailed(path, "a file became a directory, or a directory a file")
        attach_mount(mount, target)
        for descriptor in (source, mount, target):
            os.close(descriptor)

    def _open(self, place: str) -> int:
        stage = os.open(self._stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_path(place, below=stage)
        finally:
            os.close(stage)

    def _hidden(self, place: str, holes: list[list[Any]]) -> int:
        if not holes:
            target = self._open(place)
            name = _HIDDEN_DIRECTORY if _is_directory(target) else _HIDDEN_FILE
            os.close(target)
            return self._open(name)
        # The way to what is granted below can be walked, not listed.
        folder = "way-" + place.replace("/", "-")[:200]
        top = f"{self._stage}/{folder}"
        os.mkdir(top, 0o711)
        for inner, is_directory in holes:
            parent = f"{top}/{os.path.dirname(inner)}"
            os.makedirs(parent, 0o711, exist_ok=True)
            _make_place(f"{top}/{inner}", is_directory=is_directory)
        for here, _, _ in os.walk(top, topdown=False):
            os.chmod(here, 0o111)  # noqa: S103 - to be walked through by the sandbox's user
        return self._open(folder)

    def _id_map(self, source: int) -> int:
        """Return a user namespace in which the owner of a file is the sandbox's user; -1 when none is needed."""
        if self._uid < 0:
            return -1
        found = os.stat(source)
        owner = found.st_uid, found.st_gid
        if owner not in self._maps:
            self._maps[owner] = _user_namespace(*owner, self._uid)
        return self._maps[owner]


def _enter_own_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _user_namespace(owner: int, group: int, uid: int) -> int:
    """Return a new user namespace in which what the file system calls `owner` and `group` is the kernel's `uid`."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    hold_read, hold_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold_write)
            unshare(CLONE_NEWUSER)
            os.write(ready_write, b"r")
            os.read(hold_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(hold_read)
    try:
        if os.read(ready_read, 1) != b"r":
            raise OSError(errno.EPERM, "no user namespace can be made")
        _write(f"/proc/{pid}/uid_map", f"{owner} {uid} 1")
        _write(f"/proc/{pid}/gid_map", f"{group} {uid} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(hold_write)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _write(path: str, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def _make_place(path: str, *, is_directory: bool) -> None:
    if is_directory:
        os.mkdir(path, 0o711)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o400))


def _is_directory(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


def _reason(error: OSError) -> str:
    if isinstance(error, GrantFailed):
        return str(error.strerror).partition(": ")[2]
    known = {
        errno.ELOOP: "a part of it is a symbolic link",
        errno.ENOENT: "it is no longer there",
        errno.ENOSYS: "this kernel is too old, 5.12 is needed",
    }
    return known.get(error.errno or 0, error.strerror or repr(error))
