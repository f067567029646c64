"""Loopback ports for servers under test that are told theirs: no two tests get one, also in processes side by side.

They lie below what the kernel gives to connections and to who asks for any (ip(7), ip_local_port_range), so that a
server may end and come back on its port.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from typing import Final

_FIRST: Final = 10_000
_EACH: Final = 5_000
"""Ports of one test process; pytest-xdist numbers them."""
_PROCESSES: Final = 4

_tried = itertools.count(secrets.randbelow(_EACH))


def free_port() -> int:
    """Return a port that nobody listens on, and that this process is given no second time for long. Raises OSError."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = _FIRST + (int(number) % _PROCESSES) * _EACH
    for _ in range(_EACH):
        port = first + next(_tried) % _EACH
        with socket.socket() as probe:
            # As servers do it: what an earlier connection left there for a minute is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
