"""What every attack program shares. These files run inside a sandbox, with the system's Python and nothing else.

An attack returns what it got, which is a breach, or raises: OSError and Blocked mean that a wall held. Whatever else it
raises is a fault of the attack and proves nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

Bait = dict[str, Any]
"""What the host offers to be found: see bait.py."""
Attack = Callable[[Bait], object]

ATTACKS: dict[str, Attack] = {}
_SECONDS = 50
"""Of a machine that others keep busy; an attack that is blocked says so at once."""

libc = ctypes.CDLL(None, use_errno=True)


class Blocked(Exception):
    """The attack did not get what it wanted."""


def attack(function: Attack) -> Attack:
    """Put an attack on the list under its function's name."""
    ATTACKS[function.__name__] = function
    return function


def checked(result: int, what: str = "") -> int:
    """Return the result of a C function. Raises OSError for -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(number: int, *arguments: object) -> int:
    """Make a system call. Raises OSError."""
    given = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return checked(int(libc.syscall(ctypes.c_long(number), *given)))


def reached(number: int, *arguments: object) -> str:
    """Return what the kernel said to a call. Raises Blocked when it was refused before its arguments were seen."""
    try:
        return f"it returned {syscall(number, *arguments)}"
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT):
            raise Blocked(errno.errorcode[error.errno]) from None
        return f"the kernel looked at it: {error.strerror}"


def first(tries: dict[str, Callable[[], object]]) -> str:
    """Return what the first try gave that worked. Raises Blocked when none does."""
    failures = []
    for name, function in tries.items():
        try:
            return f"{name}: {function()}"
        except (OSError, Blocked) as error:
            failures.append(f"{name}: {error}")
    raise Blocked("; ".join(failures))


def run(names: list[str], bait: Bait) -> None:
    """Try each attack in a process of its own and print one line of JSON: name -> [got through, evidence]."""
    verdicts = {name: _alone(ATTACKS[name], bait) for name in names}
    sys.stdout.write(json.dumps(verdicts) + "\n")
    sys.stdout.flush()


def _alone(function: Attack, bait: Bait) -> list[object]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setsid()
        signal.alarm(_SECONDS)
        try:
            answer: list[object] = [True, str(function(bait))[:500]]
        except (OSError, Blocked, MemoryError) as error:
            answer = [False, f"{type(error).__name__}: {error}"[:500]]
        except BaseException as error:  # noqa: BLE001 - told to the test, which fails then
            answer = [None, repr(error)[:500]]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    # A verdict is one write, which a pipe takes whole; what the attack started may hold the pipe open.
    text = os.read(read, 4096)
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if text:
        found: list[object] = json.loads(text)
        return found
    return [False, f"it was ended by signal {status & 127}"]
