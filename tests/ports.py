"""Loopback ports for servers under test that are told theirs: no two tests get one, also in processes side by side.

They lie below those of the examples, and those below what the kernel gives to connections, so that a server may end and
come back on its port.
"""

from __future__ import annotations

import os
from typing import Final

from examples import serving

_FIRST: Final = 10_000
_EACH: Final = 5_000
"""Ports of one test process; pytest-xdist numbers them."""
_PROCESSES: Final = 4


def free_port() -> int:
    """Return a port that nobody listens on, and that this process is given no second time for long. Raises OSError."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = _FIRST + (int(number) % _PROCESSES) * _EACH
    return serving.free_port(range(first, first + _EACH))
