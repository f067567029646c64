"""What the filter is meant to answer, said a second time without any jumps."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from sandbox_adapters.runners.hardening.syscall_rules import ALLOWED, REFUSED

ALLOW, KILL = 0x7FFF0000, 0x80000000
ENOENT, ENOMEM = 0x50002, 0x5000C
EPERM, EACCES, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT = 0x50001, 0x5000D, 0x50026, 0x5005D, 0x50061

_NAMES = {machine: {number: name for name, number in table.items()} for machine, table in NUMBERS.items()}


def expected(machine: str, number: int, arguments: Sequence[int]) -> int:
    """Return the action for a call of `machine`'s own architecture."""
    number &= 0xFFFFFFFF
    if machine == "x86_64" and number & 0xC0000000 == 0x40000000:
        return KILL
    name = _NAMES[machine].get(number)
    low = [argument % 2**32 for argument in [*arguments, 0, 0, 0, 0, 0, 0][:6]]
    match name:
        case "clone":
            namespaces = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
            return EPERM if low[0] & namespaces else ALLOW
        case "fcntl":
            return EACCES if low[1] in (1024, 1040) else ALLOW
        case "ioctl":
            return EPERM if low[1] in (0x5412, 0x541C, 0x5423) else ALLOW
        case "personality":
            return ALLOW if low[0] in (0, 8, 0xFFFFFFFF) else EPERM
        case "mmap":
            return ENOMEM if low[3] & 0x40000 else ALLOW
        case "memfd_create":
            return ENOSYS if low[1] & 4 else ALLOW
        case "shmget":
            return EPERM if low[2] & 0o4000 else ALLOW
        case "mknod":
            return _node(low[1])
        case "mknodat":
            return _node(low[2])
        case "setsockopt":
            return ENOENT if low[1:3] == [6, 31] else ALLOW
        case "socketpair":
            return ALLOW if low[0] == 1 else EAFNOSUPPORT
        case "socket":
            return _socket(*low[:3])
    if name in ALLOWED:
        return ALLOW
    return EPERM if name in REFUSED else ENOSYS


def _node(mode: int) -> int:
    return ALLOW if mode & 0o170000 in (0, 0o100000, 0o10000, 0o140000) else EPERM


def _socket(family: int, kind: int, protocol: int) -> int:
    kind &= 15
    if family not in (1, 2, 10):
        return EAFNOSUPPORT
    if kind in (3, 10):
        return EPERM
    if family == 1:
        return ALLOW if kind in (1, 2, 5) else EPROTONOSUPPORT
    return ALLOW if kind in (1, 2) and protocol in (0, 6, 17) else EPROTONOSUPPORT
