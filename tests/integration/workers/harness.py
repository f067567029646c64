"""Real servers that run nothing and real workers, on one real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.program import Program as Program
from tests.integration.program import close_all
from tests.redis_server import RedisServer

LONG_LEASE_SECONDS = 60.0
"""Where nobody dies: a busy machine is not taken for a dead worker."""
LEASE_SECONDS = 9.0
"""Where some die and others must live: the default."""
SHORT_LEASE_SECONDS = 3.0
"""Where a test waits for what a dead one had, and has nothing else to lose."""


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
    redis: RedisServer,
    directory: Path,
    *,
    servers: int = 2,
    workers: int = 2,
    concurrency: int = 3,
    lease_seconds: float = LONG_LEASE_SECONDS,
    **variables: str,
) -> Iterator[Fleet]:
    """Start servers that run nothing and workers; ends everything that was started."""
    given = {
        "REDIS_URL": redis.url,
        "SANDBOX_QUEUE_URL": redis.url,
        "SANDBOX_LEASE_SECONDS": str(lease_seconds),
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
        close_all([*started.servers, *started.workers])
