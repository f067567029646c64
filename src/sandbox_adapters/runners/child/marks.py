"""Whose a bwrap is: its argv[0] says so, for whoever has to end what a killed launcher left.

A sandbox's pid 1 asks to be ended with its bwrap (`--die-with-parent`) only some milliseconds after it was forked, and
does not look whether that still lives. A launcher that is killed at such a moment leaves a sandbox that nothing ends,
and that, where no cgroup has it, nobody could tell from those of others.
"""

from __future__ import annotations

import os
import select
import signal
import time

_SECONDS = 15.0
_PIDFD_OPEN = hasattr(os, "pidfd_open")


def mark_of(directory: str, launcher: int | None = None) -> bytes:
    """Return how argv[0] begins for every bwrap of a runtime directory, or of one of its launchers."""
    return f"bwrap:{os.path.basename(directory)}:{'' if launcher is None else f'{launcher}:'}".encode()


def end_marked(mark: bytes) -> None:
    """End every process with this mark, and wait until it is gone, 15 s for all at most. Their launcher must be dead.

    With a sandbox's pid 1 ends all that is in it. Whoever gives another process such a name has only that one ended.
    """
    if not _PIDFD_OPEN:
        return
    until = time.monotonic() + _SECONDS
    tried: set[int] = set()
    while (found := _marked(mark) - tried) and time.monotonic() < until:
        for pid in found:
            _end(pid, mark, until)
        tried |= found


def _marked(mark: bytes) -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _has(int(name), mark)}


def _has(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as words:
            return words.read(len(mark)) == mark
    except OSError:
        return False


def _end(pid: int, mark: bytes, until: float) -> None:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # Open before it is looked at again: a number may be that of another process by now.
        if _has(pid, mark):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            ended = select.poll()
            ended.register(process, select.POLLIN)
            ended.poll(max(0, until - time.monotonic()) * 1000)
    except OSError:
        return
    finally:
        os.close(process)
