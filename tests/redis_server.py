"""A real Redis for tests, by one fixture: a container where a Docker engine is, else the `redis-server` program.

    async def test_it(redis_server):            # shared by the whole run, empty for each test
        RedisOptions(url=SecretStr(redis_server.url))

    async def test_a_fault(own_redis):          # one's own: pause, kill, restart it
        own_redis.pause()

Load it with `pytest_plugins`, or from tests/conftest.py.
"""

from __future__ import annotations

import shutil
import signal
import subprocess  # noqa: TID251  # starts the server under test
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.redis_container import ContainerRedis, docker_answers
from tests.stopping import pause

_START_SECONDS = 60.0
_ANSWER_SECONDS = 90.0
"""More than what a test asks Redis itself to wait for."""
_PAUSE_SECONDS = 0.01


class RedisServer:
    """A `redis-server` on loopback that a test may stop, pause, kill and start again on the same port.

    What is answered is in an append-only file, so that a restart after any end of the process loses nothing. It is not
    flushed to the disk: that guards against the end of the machine, and holds everybody up where the disk is busy.
    """

    def __init__(self, directory: Path, options: Sequence[str] = (), sentinel: Path | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self._options = list(options)
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | ContainerRedis | None = None
        self._last_error: Exception | None = None

    @property
    def url(self) -> str:
        """Where it answers: database 0, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, or start it again; returns when it answers."""
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory), "--daemonize", "no",
                 "--logfile", str(self.directory / "redis.log")]  # fmt: skip
        if self._sentinel is not None:
            command = ["redis-server", str(self._sentinel), "--sentinel", *where]
        else:
            kept = ["--save", "", "--appendonly", "yes", "--appendfsync", "no"]
            command = ["redis-server", *where, *kept, *self._options]
        if docker_answers():
            # Its files are those of this machine: its own, and what the options name, as a key or a socket.
            named = [word for word in [*self._options, str(self._sentinel or "")] if word.startswith("/")]
            self._process = ContainerRedis(command, sorted({self.directory, *(Path(word).parent for word in named)}))
        else:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _until(
            self._answers,
            lambda: f"redis-server does not answer on port {self.port}: {self._last_error!r}. {self._log}",
        )

    def stop(self) -> None:
        """End it in an orderly way, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop its clockwork: connections stay open and nothing answers."""
        if isinstance(self._process, subprocess.Popen):
            if self._process.poll() is None:
                pause(self._process.pid)
        else:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def ask(self, *parts: str | bytes | int) -> Any:
        """Run one command with a plain client of its own, and return the answer."""
        from redis import Redis

        with Redis(port=self.port, socket_timeout=_ANSWER_SECONDS, protocol=2) as client:
            return client.execute_command(*parts)

    def commands(self) -> Counter[str]:
        """Return how often each command was run since the server started, those inside scripts too."""
        found: Counter[str] = Counter()
        for name, numbers in self.ask("INFO", "commandstats").items():
            found[name.removeprefix("cmdstat_")] = int(numbers["calls"])
        return found

    def sent_bytes(self) -> int:
        """Return how many bytes it has sent to all clients."""
        return int(self.ask("INFO", "stats")["total_net_output_bytes"])

    def _answers(self) -> bool:
        from redis.exceptions import RedisError

        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"redis-server ended with {self._process.poll()}. {self._log}")
        try:
            return self.ask("PING") is not None
        except (RedisError, OSError) as error:
            self._last_error = error
            return False

    @property
    def _log(self) -> str:
        """What it said last, for who wants to know why it does not run."""
        file = self.directory / "redis.log"
        return f"Its log ends with: {file.read_text()[-2000:] if file.exists() else ''}"

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._signal(number)
            self._signal(signal.SIGCONT)
            self._process.wait(_START_SECONDS)
            self._process = None


@contextmanager
def running_redis(*options: str, sentinel: Path | None = None) -> Iterator[RedisServer]:
    """Run a server of one's own, with these further options of redis-server, or a Sentinel with this configuration."""
    with tempfile.TemporaryDirectory(prefix="redis-test-", ignore_cleanup_errors=True) as directory:
        server = RedisServer(Path(directory), options, sentinel)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def running_cluster(*slots: int) -> Iterator[RedisServer]:
    """Run a Redis Cluster of one node, which has all slots, or those from the first to the last of `slots`."""
    bus = str(free_port())  # else it is the port and 10,000, which may be none
    covered = ("--cluster-require-full-coverage", "no")
    with running_redis("--cluster-enabled", "yes", "--cluster-port", bus, *covered) as server:
        first, last = slots or (0, 16_383)
        server.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        _until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"), lambda: "the cluster does not come up")
        yield server


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """The server that tests share which leave it as it is."""
    need_redis()
    with running_redis("--appendonly", "no", "--databases", "2") as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A server that runs, empty."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server for one test, which may do to it what it likes."""
    need_redis()
    with running_redis() as server:
        yield server


def need_redis() -> None:
    """Skip without a redis-server or an engine for one; in CI that is a failure."""
    if shutil.which("redis-server") is None and not docker_answers():
        pytest.skip("redis-server is missing; apt-get install redis-server")


def _until(holds: Callable[[], bool], complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint())
        time.sleep(_PAUSE_SECONDS)
