"""Stopping a process's clockwork, for tests that need it to stand still: a signal is no promise until it is obeyed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_BOUND_SECONDS = 30
_PAUSE_SECONDS = 0.001


def pause(pid: int) -> None:
    """Stop a process, and return when none of its threads runs any more. Raises TimeoutError."""
    os.kill(pid, signal.SIGSTOP)
    wait_stopped(pid)


def wait_stopped(pid: int) -> None:
    """Return when a process stands still, or has ended. Raises TimeoutError."""
    deadline = time.monotonic() + _BOUND_SECONDS
    while any(state not in "TtZX" for state in _states(pid)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} goes on")
        time.sleep(_PAUSE_SECONDS)


def _states(pid: int) -> list[str]:
    """Return the state of each thread (proc_pid_stat(5)); none for a process that is gone."""
    found = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found
