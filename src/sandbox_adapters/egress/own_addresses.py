"""Which addresses lead to this machine itself, as the kernel's routes have it now."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from sandbox_adapters.egress.hosts import IpAddress

_DISCARD_PORT = 9


def is_own_address(address: IpAddress) -> bool:
    """True when a connection to `address` would end on this machine, also at an address that looks public.

    Asks the routing tables and sends nothing: the kernel answers a local destination from that same address (ip(7),
    ipv6(7); RFC 6724, section 5, rule 1). An address without a route is nobody's; True when nothing can be asked.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError:
        return True
    with probe:
        try:
            probe.connect((address.compressed, _DISCARD_PORT))
        except OSError:
            return False
        return ip_address(probe.getsockname()[0]) == address
