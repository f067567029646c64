"""ContainerRedis: the server of `redis_server.py` in a container, where a Docker engine is."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMAGE = "redis:7"
_SOCKET = "/var/run/docker.sock"


def docker_answers() -> bool:
    """Tell whether a Docker engine is there, on its socket or where DOCKER_HOST says, and testcontainers with it."""
    if find_spec("testcontainers") is None:
        return False
    if os.environ.get("DOCKER_HOST"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(_SOCKET)
        except OSError:
            return False
    return True


class ContainerRedis:
    """One container on the host's network, so that its port and its files are where a program's would be."""

    def __init__(self, command: Sequence[str], directories: Sequence[Path]) -> None:
        from testcontainers.core.container import DockerContainer

        container = DockerContainer(IMAGE, network_mode="host", user=f"{os.getuid()}:{os.getgid()}")
        for directory in directories:
            container = container.with_volume_mapping(str(directory), str(directory), "rw")
        self._container: Any = container.with_command(list(command))
        self._container.start()

    def send_signal(self, number: int) -> None:
        """Pause it, let it go on, or send it a signal."""
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        if wrapped.status == "paused" and number != signal.SIGSTOP:
            wrapped.unpause()
        if number == signal.SIGSTOP:
            wrapped.pause()
        elif number != signal.SIGCONT:
            wrapped.kill(signal=number)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return None if wrapped.status in ("created", "running", "paused") else int(wrapped.attrs["State"]["ExitCode"])

    def wait(self, timeout: float) -> int:
        """Wait for its end and remove it."""
        code = int(self._container.get_wrapped_container().wait(timeout=timeout)["StatusCode"])
        self._container.stop()
        return code
