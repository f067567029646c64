"""Attacks by network and by what processes talk through."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from functools import partial

from tests.integration.attacks.inside.verdicts import Bait, Blocked, attack, checked, first, libc

_SECONDS = 20


@attack
def interfaces(bait: Bait) -> str:
    with open("/proc/net/dev") as lines:
        names = [line.split(":")[0].strip() for line in lines if ":" in line]
    if names == ["lo"]:
        raise Blocked("only a loopback of its own")
    return str(names)


def _connect(family: socket.AddressFamily, kind: socket.SocketKind, address: object) -> str:
    with socket.socket(family, kind) as client:
        client.settimeout(_SECONDS)
        client.connect(address)  # type: ignore[arg-type]
        if kind is socket.SOCK_DGRAM:
            client.send(b"?")
        return f"{address} answered {client.recv(100)!r}"


@attack
def loopback_of_the_host(bait: Bait) -> str:
    return first(
        {
            "IPv4": lambda: _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", bait["tcp4"])),
            "IPv6": lambda: _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", bait["tcp6"])),
            "mapped": lambda: _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", bait["tcp4"])),
            "UDP": lambda: _connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", bait["udp"])),
        }
    )


@attack
def abstract_socket_of_the_host(bait: Bait) -> str:
    return _connect(socket.AF_UNIX, socket.SOCK_STREAM, b"\0" + bait["abstract"].encode())


@attack
def route_to_elsewhere(bait: Bait) -> str:
    """To metadata services, name servers, the internet. Connecting a datagram socket only looks for a route."""
    tries: dict[str, Callable[[], object]] = {}
    for address in ("169.254.169.254", "8.8.8.8", "10.0.0.1", "192.0.2.1", "fd00:ec2::254", "2001:db8::1"):
        tries[address] = partial(_route, address)
    return first(tries)


def _route(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((address, 53))
        return f"from {client.getsockname()[0]}"


@attack
def memory_shared_by_key(bait: Bait) -> str:
    """System V shared memory that the host lets everybody read."""
    number = checked(libc.shmget(bait["shared_key"], 0, 0))
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(number, None, 0o10000)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    return ctypes.string_at(address).decode()


@attack
def message_queue_of_the_host(bait: Bait) -> str:
    """A POSIX message queue that the host lets everybody open."""
    libc.mq_open.restype = ctypes.c_int
    checked(libc.mq_open(bait["queue"].encode(), os.O_RDONLY))
    return str(bait["queue"])


@attack
def session_of_the_launcher(bait: Bait) -> str:
    """A process group shared with processes outside could be ended by a signal to the group."""
    # 0 stands for one that this pid namespace does not have.
    group, session = os.getpgid(os.getppid()), os.getsid(os.getppid())
    if group and session:
        raise Blocked(f"group {group}, session {session}, both its own")
    return f"group {group}, session {session}: they begin outside"
