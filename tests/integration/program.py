"""A real `sandbox serve` or `sandbox worker` that a test may kill, pause and start again on its port."""

from __future__ import annotations

import signal
import subprocess  # noqa: TID251  # the programs under test
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from tests.integration.mcp.harness import PATIENCE_SECONDS, Served, eventually, start_sandbox
from tests.ports import free_port
from tests.stopping import pause


class Program(Served):
    """Starts at once; `wait_ready` tells when it answers. `close` it at the end, in whatever state it is.

    Args:
        directory: where it runs, and where its log is: all of its starts write to one.
        arguments: what follows `sandbox`, without the port.
        variables: its environment beside `environment()`; a change counts from the next start on.
    """

    def __init__(self, directory: Path, arguments: Sequence[str], variables: dict[str, str]) -> None:
        self._directory = directory
        self._arguments = list(arguments)
        self._variables = variables
        port = free_port()
        log = directory / f"{arguments[0]}-{port}.log"
        super().__init__(self._start(port, log), port, log)

    def _start(self, port: int, log: Path) -> subprocess.Popen[bytes]:
        return start_sandbox(self._directory, [*self._arguments, "--port", str(port)], log, **self._variables)

    def start_again(self) -> None:
        """Start it on the same port, once the one before has ended."""
        self.process.wait(PATIENCE_SECONDS)
        self.process = self._start(self.port, self.log)

    def wait_ready(self) -> None:
        """Return when it answers at all."""
        eventually(self._answers, f"it answers; its log: {self.log.read_text()}", seconds=2 * PATIENCE_SECONDS)

    def told(self) -> dict[str, Any]:
        """Return what /health says."""
        said: dict[str, Any] = self.health().json()
        return said

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def pause(self) -> None:
        """Stop its clockwork."""
        pause(self.process.pid)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """Ask it to stop as an operator would, if it runs; does not wait."""
        if self.process.poll() is None:
            self.resume()
            self.process.terminate()

    def close(self) -> None:
        """End it, in whatever state it is."""
        self.ask_to_stop()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.health()
        except httpx2.HTTPError:
            return False
        return True


def close_all(programs: Sequence[Program]) -> None:
    """End these, all at the same time."""
    for program in programs:
        program.ask_to_stop()
    for program in programs:
        program.close()
