"""What the standard library lacks for looking after processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
_SYS_CLOSE_RANGE = 436
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32
_libc = ctypes.CDLL(None, use_errno=True)


def close_from(lowest: int) -> None:
    """Close every descriptor from `lowest` on (close_range(2)); before kernel 5.9 close-on-exec has to do."""
    _libc.syscall(_SYS_CLOSE_RANGE, lowest, ctypes.c_uint(0xFFFFFFFF), 0)


def prctl(option: int, value: int) -> None:
    """Call prctl(2). Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def setns(descriptor: int) -> None:
    """Enter a namespace (setns(2)). Raises OSError."""
    if _libc.setns(descriptor, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remount(path: str, options: str) -> None:
    """Change the options of a file system that is mounted nosuid and nodev (mount(2)). Raises OSError."""
    flags = ctypes.c_ulong(_MS_REMOUNT | _MS_NOSUID | _MS_NODEV)
    if _libc.mount(None, path.encode(), None, flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def children(pid: int = 0) -> list[int]:
    """Return the pids of a process's children; its own without an argument. One thread is all such a process has."""
    pid = pid or os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as listing:
            return [int(child) for child in listing.readall().split()]
    except FileNotFoundError:
        pass
    except OSError:
        return []
    # No such process, or a kernel without CONFIG_PROC_CHILDREN.
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(int(name)) == pid]


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            text = stat.read(1024)
    except OSError:
        return 0
    # The name in brackets may hold anything, brackets too (proc_pid_stat(5)).
    return int(text[text.rindex(b")") + 2 :].split()[1])


def is_child(pid: int) -> bool:
    """True when `pid` is a child of this process that has not been reaped yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def send_signal(pid: int, number: int) -> None:
    """Signal a child that has not been reaped. No error when it has just ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reset_signals() -> None:
    """Default every signal, then handle what must not end this process: exec gives handled ones back their default."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):  # some are kept by the C library for itself
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, lambda *_: None)
