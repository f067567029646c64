"""A second system call filter, for executions that can write to host directories: no set-user-ID or set-group-ID bits.

Such a bit means nothing inside, where every mount is nosuid. On the host a program left behind with it would run with
the rights of the directory's owner. The bits are arguments of the calls below; `openat2` has them in memory, where no
filter can look, so it fails as on an older kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os

from . import bpf
from .bpf import ANY_BIT, EQUAL, Piece, branch, load, load_argument, ret
from .seccomp import MACHINES, RET_ALLOW, refuse
from .syscall_numbers import NUMBERS

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SET_ID_BITS = 0o6000
_CREATES = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
"""Without one of these flags the mode of open(2) is whatever happens to stand there."""
_MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
_FLAGS_AND_MODE_ARGUMENTS = {"open": (1, 2), "openat": (2, 3)}

_ALLOW, _EPERM, _ENOSYS = ret(RET_ALLOW), ret(refuse(errno.EPERM)), ret(refuse(errno.ENOSYS))
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def build_filter(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter; what it has no opinion on, the sandbox's own filter decides.

    Args:
        machine: one of `seccomp.MACHINES`; None is this one.

    Raises ValueError for another machine.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise ValueError(f"there is no system call table for {machine}, only for {' and '.join(MACHINES)}")
    numbers = NUMBERS[machine]
    cases: dict[int, Piece] = {numbers["openat2"]: _ENOSYS}
    cases |= {numbers[name]: _mode(index) for name, index in _MODE_ARGUMENT.items() if name in numbers}
    for name, (flags, mode) in _FLAGS_AND_MODE_ARGUMENTS.items():
        if name in numbers:
            cases[numbers[name]] = load_argument(flags) + branch(ANY_BIT, _CREATES, _mode(mode), _ALLOW)
    calls = load(bpf.OFFSET_NUMBER) + bpf.switch(cases, _ALLOW)
    return bpf.pack(load(bpf.OFFSET_MACHINE) + branch(EQUAL, MACHINES[machine], calls, _ALLOW))


def restrict_self(program: bytes) -> None:
    """Put the calling thread, and whatever it becomes, under a filter. Needs no_new_privs. Raises OSError."""
    described = _Program(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(described), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the filter of set-user-ID bits: {os.strerror(number)}")


def _mode(argument: int) -> Piece:
    return load_argument(argument) + branch(ANY_BIT, _SET_ID_BITS, _EPERM, _ALLOW)
