"""Landlock scopes: no abstract socket and no process outside can be reached (landlock(7)).

Both pass the walls of a mount namespace: an abstract AF_UNIX address is bound by the network namespace alone, which
a granted network may share, and a signal by the uid. File system rights stay unused on purpose: a
process that has any may not mount, and bwrap is still to mount everything.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""The numbers are the same on every machine but alpha."""
_CREATE_RULESET_VERSION = 1
_SCOPES_SINCE_ABI = 6
_SCOPES = {"abstract_unix_socket": 1, "signal": 2}
_RULESET = struct.Struct("=QQQ")
"""struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Landlock:
    """What a kernel's Landlock gives: its ABI (0: none), and the scopes that are applied (empty below ABI 6)."""

    abi: int
    scopes: tuple[str, ...]


def detect() -> Landlock:
    """Return what this kernel can do. Costs one system call."""
    abi = _syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if abi < 0:
        # ENOSYS: not built in, or refused by a filter; EOPNOTSUPP: turned off at boot.
        return Landlock(0, ())
    return Landlock(abi, tuple(_SCOPES) if abi >= _SCOPES_SINCE_ABI else ())


def make_ruleset(landlock: Landlock) -> int:
    """Return a descriptor of the scopes of `landlock`, close-on-exec, for any number of `restrict_self`.

    Raises ValueError when there are no scopes, OSError.
    """
    if not landlock.scopes:
        raise ValueError(f"Landlock ABI {landlock.abi} has no scopes, which came with ABI {_SCOPES_SINCE_ABI}")
    attributes = _RULESET.pack(0, 0, sum(_SCOPES[scope] for scope in landlock.scopes))
    return _checked(_syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), _RULESET.size, 0))


def restrict_self(ruleset: int) -> None:
    """Put the calling thread, and whatever it becomes, under a ruleset; there is no way back.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises OSError.
    """
    _checked(_syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), 0, 0))


def restrict() -> Landlock:
    """Apply every scope that the kernel has to the calling thread and return what was applied. Raises OSError."""
    landlock = detect()
    if landlock.scopes:
        ruleset = make_ruleset(landlock)
        try:
            restrict_self(ruleset)
        finally:
            os.close(ruleset)
    return landlock


def _syscall(number: int, argument: object, size: int, flags: int) -> int:
    return int(_libc.syscall(ctypes.c_long(number), argument, ctypes.c_size_t(size), ctypes.c_uint32(flags)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
