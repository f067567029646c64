"""Run a function in a forked child, since what is tested here cannot be taken back."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_NO_NEW_PRIVS = 38


class EndedBySignal(Exception):
    """The child was killed; `args[0]` is the signal."""


def in_child(function: Callable[[], Any], *, seconds: int = 60) -> Any:
    """Return what `function` returned in a child, by JSON. Raises EndedBySignal, AssertionError with its trace."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            try:
                answer = {"result": function()}
            except BaseException:  # noqa: BLE001 - the child must not run on into pytest
                answer = {"failure": traceback.format_exc()}
            os.write(write, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise EndedBySignal(signal.Signals(os.WTERMSIG(status)))
    answer = json.loads(text)
    assert "failure" not in answer, answer["failure"]
    return answer["result"]


def no_new_privs() -> None:
    """What the filter and Landlock ask of a process without capabilities."""
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0) == 0


def call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; return 0 when it succeeded, else the errno."""
    ctypes.set_errno(0)
    given = [ctypes.c_ulong(item & 2**64 - 1) if isinstance(item, int) else item for item in arguments]
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *given) == -1 else 0
