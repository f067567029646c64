"""Stopping a process's clockwork, for tests that need it to stand still: a signal is no promise until it is obeyed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
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
    for thread in _threads(pid):
        # One that ends meanwhile says nothing of the others.
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return found


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
