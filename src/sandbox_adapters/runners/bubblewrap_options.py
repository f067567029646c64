"""The options that bwrap gets: the view of the file system, the namespaces, the environment (bwrap(1))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sandbox_adapters.runners.environment import base_environment
from sandbox_adapters.runners.runtime_directory import empty_directory, shown_directories
from sandbox_adapters.runners.spare_script import script_for
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import WORKSPACE, inside_sandbox, path_within

WRITABLE = (WORKSPACE, "/tmp", "/dev/shm")  # noqa: S108 - the sandbox's own
"""Where a command can write; each is a private tmpfs that ends with the execution."""

SHARED_MEMORY_MB = 64
"""Size of /dev/shm."""

_MIB = 1 << 20
_TOP_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_NAMESPACES = (
    "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup",
    "--uid", "1000", "--gid", "1000", "--disable-userns", "--hostname", "sandbox",
    "--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv",
)  # fmt: skip
_DESTINATION_LAST = frozenset({"--ro-bind", "--symlink"})
_DESTINATION_FIRST = frozenset({"--tmpfs", "--proc", "--dev"})


def readable_roots(read_only_paths: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the roots of everything that a command can read.

    Raises ValueError for a read-only path that is relative, or in the way of the sandbox's own directories.
    """
    taken = ("/usr", "/etc", "/proc", "/dev", *WRITABLE, *(f"/{name}" for name in _TOP_DIRECTORIES))
    for path in read_only_paths:
        if not os.path.isabs(path) or os.path.normpath(path) != path:
            raise ValueError(f"read-only path {path!r} must be absolute, without `..` or a slash at the end")
        if any(path_within(path, root) or path_within(root, path) for root in taken):
            raise ValueError(f"read-only path {path!r} is in the way of a directory that the sandbox has of its own")
    return (*taken, *read_only_paths)


class SandboxView:
    """What every sandbox of a runner sees, and the options that make it. Built once.

    Args:
        etc: the directory shown as /etc.
        read_only_paths: further host paths shown read-only at the same place, for example `/opt`.

    """

    def __init__(self, etc: Path, read_only_paths: Sequence[str] = ()) -> None:
        self._constant = _pack((*_NAMESPACES, *_file_system(etc, read_only_paths)))
        base = base_environment(home=WORKSPACE, temporary="/tmp")  # noqa: S108 - the sandbox's own
        self.shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
        self._environment = _pack(_setenv({**base, "SHELL": self.shell}))
        self._search_path = base["PATH"]
        self._sized: dict[int | None, bytes] = {}

    def options(
        self, command: Command, workspace_mb: int | None, environment: Mapping[str, str], granted: Sequence[str] = ()
    ) -> bytes:
        """Return bwrap's options for one command, each ended by a NUL as `--args` wants them.

        The variables of `environment` stand under the command's own; `granted` show it host directories
        (`Granted.options`).
        """
        sized = self._sized.get(workspace_mb)
        if sized is None:
            if len(self._sized) >= 64:
                self._sized.clear()
            sized = self._sized[workspace_mb] = _pack(_private_directories(workspace_mb))
        directory = WORKSPACE if command.working_directory is None else inside_sandbox(command.working_directory)
        own = _pack(("--chdir", directory, *_setenv({**environment, **command.environment})))
        return b"".join((self._constant, _pack(granted), sized, self._environment, own))

    def spare_script(self, command: Command) -> bytes | None:
        """Return what makes a waiting spare run the command, as `options` and `argv` would; None when nothing does."""
        return script_for(command, self.shell, self._search_path)

    def argv(self, command: Command) -> list[bytes]:
        """Return what bwrap executes for a command."""
        if command.argv is not None:
            return [item.encode() for item in command.argv]
        # `--` ends bash's options, so that text may begin with a dash; dash takes it too.
        return [self.shell.encode(), b"-c", b"--", (command.shell or "").encode()]


def destinations(options: Iterable[str]) -> list[str]:
    """Return every path that bwrap would create or mount on for these options, in order."""
    items = list(options)
    found = []
    for index, item in enumerate(items):
        if item in _DESTINATION_LAST:
            found.append(items[index + 2])
        elif item in _DESTINATION_FIRST:
            found.append(items[index + 1])
    return found


def check_destinations(options: Iterable[str]) -> None:
    """Refuse a mount point below a directory that a command can write to.

    bubblewrap before 0.12 follows a link left there by an earlier command and writes outside (CVE-2026-87766).
    Raises ValueError.
    """
    for path in destinations(options):
        for root in WRITABLE:
            if path != root and path_within(path, root):
                raise ValueError(f"{path} lies below {root}, which commands can write to")


def _file_system(etc: Path, read_only_paths: Sequence[str]) -> tuple[str, ...]:
    empty = empty_directory(etc)
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _TOP_DIRECTORIES:
        path = f"/{name}"
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            options += ["--ro-bind", path, path]
    options += ["--ro-bind", str(etc), "/etc"]
    for path in (*shown_directories(etc), *read_only_paths):
        options += ["--ro-bind", path, path]
    # Pid 1 is bwrap, outside whose file can be changed through its `exe` by who owns it, an unprivileged server's uid
    # (a mount's being read-only is that of where a magic link leads). Read-only, /proc keeps `mem` and oom scores too.
    options += ["--proc", "/proc", "--ro-bind", str(empty), "/proc/1", "--remount-ro", "/proc", "--dev", "/dev"]
    check_destinations(options)
    return tuple(options)


def _private_directories(workspace_mb: int | None) -> tuple[str, ...]:
    size = () if workspace_mb is None else ("--size", str(workspace_mb * _MIB))
    options = (
        "--size", str(SHARED_MEMORY_MB * _MIB), "--perms", "1777", "--tmpfs", WRITABLE[2], "--remount-ro", "/dev",
        *size, "--perms", "1777", "--tmpfs", WRITABLE[1],
        *size, "--perms", "0700", "--tmpfs", WORKSPACE,
        "--remount-ro", "/",
    )  # fmt: skip
    check_destinations(options)
    return options


def _setenv(variables: Mapping[str, str]) -> list[str]:
    return [item for name, value in variables.items() for item in ("--setenv", name, value)]


def _pack(options: Iterable[str]) -> bytes:
    return b"".join(item.encode() + b"\0" for item in options)
