"""What a service manager that waits for it is told of this process: sd_notify(3), systemd's `Type=notify`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from sandbox_adapters.logging import get_logger

READY: Final = "READY=1"
"""It serves, or takes work."""

STOPPING: Final = "STOPPING=1"
"""It drains."""

_SECONDS = 1.0

_log = get_logger(__name__)


def tell_manager(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell who started us, where NOTIFY_SOCKET says that somebody waits; takes 1 s at most. Raises nothing."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(_SECONDS)
            # A leading @ stands for the zero byte of an abstract address: unix(7).
            manager.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        _log.warning("The service manager could not be told", state=state, problem=error.strerror or str(error))
