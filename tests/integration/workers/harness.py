"""Real servers that run nothing and real workers, on one real Redis."""

from __future__ import annotations

import signal
import subprocess  # noqa: TID251  # the programs under test
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.integration.mcp.harness import (
    PATIENCE_SECONDS,
    Served,
    environment,
    eventually,
    free_port,
    sandbox_program,
)
from tests.redis_server import RedisServer

LEASE_SECONDS = 3.0


class Program(Served):
    """A `sandbox serve` or `sandbox worker` that can be killed, stopped and started again on its port."""

    def __init__(self, directory: Path, arguments: Sequence[str], variables: dict[str, str]) -> None:
        self._directory = directory
        self._arguments = list(arguments)
        self._variables = variables
        port = free_port()
        super().__init__(self._start(port), port, directory / f"{arguments[0]}-{port}.log")

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        with (self._directory / f"{self._arguments[0]}-{port}.log").open("ab") as log:
            return subprocess.Popen(
                [sandbox_program(), *self._arguments, "--port", str(port)],
                env=environment(**self._variables),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_again(self) -> None:
        """Start it on the same port, once the one before has ended."""
        self.process.wait(PATIENCE_SECONDS)
        self.process = self._start(self.port)

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
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, in whatever state it is."""
        if self.process.poll() is None:
            self.resume()
            self.process.terminate()
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


@dataclass
class Fleet:
    """Servers and workers on one Redis."""

    redis: RedisServer
    directory: Path
    variables: dict[str, str]
    servers: list[Program] = field(default_factory=list)
    workers: list[Program] = field(default_factory=list)

    def add_server(self, *arguments: str, **variables: str) -> Program:
        """Start a server that runs nothing, unless the arguments say otherwise."""
        given = arguments or ("--no-local-runner",)
        self.servers.append(Program(self.directory, ["serve", *given], self.variables | variables))
        return self.servers[-1]

    def add_worker(self, concurrency: int = 3, **variables: str) -> Program:
        """Start a worker."""
        arguments = ["worker", "--concurrency", str(concurrency)]
        self.workers.append(Program(self.directory, arguments, self.variables | variables))
        return self.workers[-1]

    def wait_ready(self) -> None:
        """Return when everything answers."""
        for program in (*self.servers, *self.workers):
            program.wait_ready()


@contextmanager
def fleet(
    redis: RedisServer, directory: Path, *, servers: int = 2, workers: int = 2, concurrency: int = 3, **variables: str
) -> Iterator[Fleet]:
    """Start servers that run nothing and workers; ends everything that was started."""
    given = {
        "REDIS_URL": redis.url,
        "SANDBOX_QUEUE_URL": redis.url,
        "SANDBOX_LEASE_SECONDS": str(LEASE_SECONDS),
        "SANDBOX_MAX_PER_SESSION": "100",
        **variables,
    }
    started = Fleet(redis, directory, given)
    try:
        for _ in range(servers):
            started.add_server()
        for _ in range(workers):
            started.add_worker(concurrency)
        started.wait_ready()
        yield started
    finally:
        for program in (*started.servers, *started.workers):
            program.close()
