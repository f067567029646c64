"""The sandbox's system call filter: an allow-list, built as the bytes that `bwrap --seccomp FD` reads (seccomp(2)).

What is allowed is in `syscall_rules`; here are the calls that depend on their arguments, and the order of tests.
Another machine's calls (32-bit x86, x32, 32-bit ARM), whose numbers mean other things, end the process.

Sockets are AF_UNIX, AF_INET and AF_INET6 only, and never raw. Netlink is not among them: glibc's getaddrinfo does
without it, getifaddrs and if_nameindex (`os.networkInterfaces()` in node) fail with EAFNOSUPPORT.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from . import bpf
from .bpf import ANY_BIT, AT_LEAST, EQUAL, Piece, branch, keep_bits, load, load_argument, one_of, ret
from .syscall_numbers import NUMBERS
from .syscall_rules import ALLOWED, REFUSED

RET_ALLOW = 0x7FFF0000
RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000

MACHINES: Mapping[str, int] = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})
"""Machine, as uname(2) calls it -> its AUDIT_ARCH_* value."""

X32_BIT = 0x40000000
NEW_NAMESPACES = 0x7E020080
"""Every CLONE_NEW* flag. 0x80, CLONE_NEWTIME, is no signal's number either, which clone(2) has in the low byte."""
REFUSED_IOCTLS = (0x5412, 0x541C, 0x5423)
"""TIOCSTI and TIOCLINUX type into the terminal; TIOCSETD loads a line discipline into the kernel."""
REFUSED_FILE_COMMANDS = (1024, 1040)
"""F_SETLEASE and F_SETDELEG: the owner of a file who has a lease on it keeps everybody who opens it waiting, 45 s each
time (fcntl(2)). In a granted directory that is the host, and under a server that is not root, every other execution
that opens a file of the /etc that all see."""
TCP, TCP_ULP = 6, 31
"""The option that puts another protocol of the kernel's (TLS, SMC, ESP) on a connection. Libraries do without it."""
MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x40000, 4, 0o4000
"""Huge pages that the operator reserved for something else. Everybody may take them, and no memory cgroup counts them
(hugetlbpage in the kernel's documentation); transparent ones, which are counted, need no flag."""
PERSONALITIES = (0, 0x0008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, and the question which one it is. The others weaken what protects a process."""
UNIX, INET, INET6 = 1, 2, 10
STREAM, DATAGRAM, RAW, SEQPACKET, PACKET = 1, 2, 3, 5, 10
INET_PROTOCOLS = (0, 6, 17)
"""The default, TCP and UDP; not SCTP, MPTCP, SMC and others that hardly anything uses and that load modules."""

_SOCKET_TYPE_MASK = 0xF
_FILE_TYPE_MASK = 0o170000
_FILE_TYPES = (0, 0o100000, 0o010000, 0o140000)
"""Regular files (0 means one too), named pipes and sockets; no devices."""


def refuse(number: int) -> int:
    """Return the filter's answer that makes a call fail with errno `number`."""
    return _RET_ERRNO | number


_ALLOW, _KILL = ret(RET_ALLOW), ret(RET_KILL_PROCESS)
_EPERM, _ENOSYS, _EACCES = ret(refuse(errno.EPERM)), ret(refuse(errno.ENOSYS)), ret(refuse(errno.EACCES))
_NO_ENTRY, _NO_MEMORY = ret(refuse(errno.ENOENT)), ret(refuse(errno.ENOMEM))
_NO_FAMILY, _NO_PROTOCOL = ret(refuse(errno.EAFNOSUPPORT)), ret(refuse(errno.EPROTONOSUPPORT))


def build_filter(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter.

    Args:
        machine: one of `MACHINES`; None is this one.

    Raises ValueError for another machine.
    """
    machine = machine or os.uname().machine
    if machine not in MACHINES:
        raise ValueError(f"there is no system call table for {machine}, only for {' and '.join(MACHINES)}")
    numbers = NUMBERS[machine]
    cases = {numbers[name]: _ALLOW for name in ALLOWED if name in numbers}
    cases |= {numbers[name]: _EPERM for name in REFUSED if name in numbers}
    cases |= {numbers[name]: check() for name, check in CHECKS.items() if name in numbers}
    calls = bpf.switch(cases, _ENOSYS)
    if machine == "x86_64":
        # x32 shares the machine's value. -1, what a tracer puts in to skip a call, is none of its numbers.
        calls = branch(AT_LEAST, X32_BIT, branch(AT_LEAST, 2 * X32_BIT, _ENOSYS, _KILL), calls)
    program = load(bpf.OFFSET_MACHINE) + branch(EQUAL, MACHINES[machine], load(bpf.OFFSET_NUMBER) + calls, _KILL)
    return bpf.pack(program)


def filter_hash(program: bytes) -> str:
    """Return the SHA-256 of a filter in hexadecimal digits, which names it in records."""
    return hashlib.sha256(program).hexdigest()


def _clone() -> Piece:
    return load_argument(0) + branch(ANY_BIT, NEW_NAMESPACES, _EPERM, _ALLOW)


def _ioctl() -> Piece:
    return load_argument(1) + one_of(REFUSED_IOCTLS, _EPERM, _ALLOW)


def _fcntl() -> Piece:
    # What the kernel says to who is not the owner.
    return load_argument(1) + one_of(REFUSED_FILE_COMMANDS, _EACCES, _ALLOW)


def _without(argument: int, flag: int, answer: Piece) -> Callable[[], Piece]:
    def check() -> Piece:
        return load_argument(argument) + branch(ANY_BIT, flag, answer, _ALLOW)

    return check


def _personality() -> Piece:
    return load_argument(0) + one_of(PERSONALITIES, _ALLOW, _EPERM)


def _socket() -> Piece:
    protocol = load_argument(2) + one_of(INET_PROTOCOLS, _ALLOW, _NO_PROTOCOL)
    kind = load_argument(1) + keep_bits(_SOCKET_TYPE_MASK)
    inet = kind + branch(
        EQUAL, STREAM, protocol, branch(EQUAL, DATAGRAM, protocol, one_of((RAW, PACKET), _EPERM, _NO_PROTOCOL))
    )
    unix = kind + one_of((STREAM, DATAGRAM, SEQPACKET), _ALLOW, one_of((RAW, PACKET), _EPERM, _NO_PROTOCOL))
    either = branch(EQUAL, INET, inet, branch(EQUAL, INET6, inet, _NO_FAMILY))
    return load_argument(0) + branch(EQUAL, UNIX, unix, either)


def _setsockopt() -> Piece:
    # As where the kernel has none.
    upper = load_argument(2) + branch(EQUAL, TCP_ULP, _NO_ENTRY, _ALLOW)
    return load_argument(1) + branch(EQUAL, TCP, upper, _ALLOW)


def _socketpair() -> Piece:
    return load_argument(0) + branch(EQUAL, UNIX, _ALLOW, _NO_FAMILY)


def _node(argument: int) -> Callable[[], Piece]:
    def check() -> Piece:
        return load_argument(argument) + keep_bits(_FILE_TYPE_MASK) + one_of(_FILE_TYPES, _ALLOW, _EPERM)

    return check


CHECKS: Mapping[str, Callable[[], Piece]] = MappingProxyType(
    {
        "clone": _clone,
        "fcntl": _fcntl,
        "ioctl": _ioctl,
        # What each says where no huge page is left, the kernel has none, or they are for others.
        "mmap": _without(3, MAP_HUGETLB, _NO_MEMORY),
        "memfd_create": _without(1, MFD_HUGETLB, _ENOSYS),
        "shmget": _without(2, SHM_HUGETLB, _EPERM),
        "personality": _personality,
        "socket": _socket,
        "setsockopt": _setsockopt,
        "socketpair": _socketpair,
        "mknod": _node(1),
        "mknodat": _node(2),
    }
)
"""The calls that are allowed with some arguments only."""
