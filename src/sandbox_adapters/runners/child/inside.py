"""Work inside a sandbox that bwrap has made and still holds back (`--block-fd`): a helper process enters it.

The launcher must not block and must not change its own namespaces, so a forked helper does the work: it takes the
job's identity, enters the user namespace that the sandbox's others belong to, of which that identity is the owner
(user_namespaces(7)), and then those. Nothing of the command exists yet, so nobody in there can be in its way. What it
exits with is 0, or the errno of what went wrong: then the job never runs.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from . import inodes
from .kernel import PR_SET_PDEATHSIG, parent_of, prctl, setns

BACKLOG = 512
"""Connections that may wait for the proxy; the kernel's `net.core.somaxconn` may make it fewer."""
_BUFFER_BYTES = 256 * 1024
"""Of the kernel, for each direction of a connection to the proxy, which inherits it from the listener (tcp(7))."""
LISTENER_MADE = b"+"
"""Comes with the listening socket."""

_NS_GET_USERNS = 0xB701
_IP_FREEBIND = 15
_SECONDS = 20
_UNKNOWN = 255


@dataclass(slots=True)
class Preparation:
    """What is to be done inside before a job's command runs.

    Args:
        uid: uid and gid of the job, -1 when they are the launcher's.
        port: of 127.0.0.1 inside, where a proxy is to be reached; 0 for none.
        report_fd: a socket that gets LISTENER_MADE with the listener; -1 without a port.
        inodes: how many each private file system may have; 0 for what the kernel gives.
    """

    uid: int
    port: int = 0
    report_fd: int = -1
    inodes: int = 0

    def work(self, process: int) -> None:
        """Do it, in the helper. `process` is the open /proc directory of the sandbox's pid 1. Raises OSError."""
        if self.inodes:
            inodes.wait_for_mounts(process)
        enter(process, *(["mnt"] if self.inodes else []), *(["net"] if self.port else []))
        if self.inodes:
            inodes.bound(self.inodes)
        if self.port:
            with listen(self.port) as listener, socket.socket(fileno=self.report_fd) as report:
                socket.send_fds(report, [LISTENER_MADE], [listener.fileno()])

    def close(self) -> None:
        """Let go of the launcher's descriptor. Again is no error."""
        if self.report_fd >= 0:
            os.close(self.report_fd)
            self.report_fd = -1


def start(pid: int, parent: int, uid: int, work: Callable[[int], None]) -> int:
    """Fork a helper that calls `work` with the open /proc directory of `pid`, a child of `parent`; return its pid.

    It ends by itself within 20 s, and with the launcher. Raises OSError.
    """
    process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Open before it is looked at: a number may be used again, an open directory stays that of one process.
        if parent_of(pid) != parent:
            raise ProcessLookupError
        launcher = os.getpid()
        helper = os.fork()
        if helper == 0:
            code = _UNKNOWN
            try:
                _settle(launcher, uid)
                work(process)
                code = 0
            except OSError as error:
                code = error.errno or _UNKNOWN
            finally:
                os._exit(code)
        return helper
    finally:
        os.close(process)


def failure(wait_status: int) -> str:
    """Return what went wrong in a helper that ended with this status, "" for nothing."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code == 0:
        return ""
    reason = os.strerror(code) if 0 < code < _UNKNOWN else "the helper process failed"
    return f"it could not be prepared: {reason}"


def enter(process: int, *names: str) -> None:
    """Enter namespaces of a process, for example `net` and `mnt`, and first the user namespace that owns them.

    Raises OSError, also when one of them turns out to be the one that this process was in.
    """
    wanted = [os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process) for name in names]
    before = [os.stat(f"/proc/self/ns/{name}").st_ino for name in names]
    if any(os.fstat(namespace).st_ino == own for namespace, own in zip(wanted, before, strict=True)):
        raise PermissionError(1, "the sandbox has no namespace of its own")
    # All are made at once (clone(2)), so one user namespace owns them all; bwrap's own later one is below it.
    setns(fcntl.ioctl(wanted[0], _NS_GET_USERNS))
    for namespace in wanted:
        setns(namespace)
        os.close(namespace)


def listen(port: int) -> socket.socket:
    """Return a socket that listens at 127.0.0.1 of the network namespace that this process is in. Raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # bwrap brings `lo` up itself, maybe only later, and fails when somebody else was faster.
    listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    return listener


def _settle(launcher: int, uid: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SECONDS)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # Changing ids clears it (prctl(2)); the launcher may have died before.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(_UNKNOWN)
