"""A real NATS with JetStream for tests, by one fixture: the `nats-server` program on loopback.

async def test_it(nats_server):             # shared by the whole run, without streams for each test
    NatsOptions(url=SecretStr(nats_server.url))

async def test_a_fault(own_nats):           # one's own: pause, kill, restart it
    own_nats.kill()
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess  # noqa: TID251  # starts the server under test
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.ports import free_port
from tests.stopping import pause

_START_SECONDS = 60.0
_PAUSE_SECONDS = 0.01


class NatsServer:
    """A `nats-server` that a test may stop, pause, kill and start again on the same port, with what it had stored."""

    def __init__(
        self,
        directory: Path,
        *,
        user: str | None = None,
        password: str | None = None,
        options: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.directory = directory
        self._options = options
        self._environment = {**os.environ, **variables}
        self.port = free_port()
        self._monitor = free_port()
        self._user, self._password = user, password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, without user and password."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        """Start it, or start it again; returns when JetStream answers, unless it is not to wait."""
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory / "store"),
                   "-m", str(self._monitor), "-l", str(self.directory / "nats.log")]  # fmt: skip
        if self._options:
            command += self._options
        elif self._user is not None and self._password is not None:
            command += ["--user", self._user, "--pass", self._password]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self._environment
        )
        deadline = time.monotonic() + _START_SECONDS
        while wait and not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nats-server does not answer on port {self.port}")
            time.sleep(_PAUSE_SECONDS)

    def stop(self) -> None:
        """End it in an orderly way, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop its clockwork: connections stay open and nothing answers."""
        if self._process is not None and self._process.poll() is None:
            pause(self._process.pid)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def ask(self, subject: str, payload: bytes = b"") -> dict[str, Any]:
        """Send one request with a plain client of its own, and return the answer."""
        about: dict[str, Any] = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        if self._user is not None:
            about |= {"user": self._user, "pass": self._password}
        with socket.create_connection(("127.0.0.1", self.port), _START_SECONDS) as plain, plain.makefile("rb") as lines:
            lines.readline()
            head = f"CONNECT {json.dumps(about)}\r\nSUB _INBOX.test 1\r\nPUB {subject} _INBOX.test {len(payload)}\r\n"
            plain.sendall(head.encode() + payload + b"\r\n")
            while line := lines.readline():
                words = line.split()
                if words[:1] == [b"MSG"]:
                    answer: dict[str, Any] = json.loads(lines.read(int(words[-1])))
                    return answer
                if words[:1] in ([b"-ERR"], [b"HMSG"]):
                    break
        raise ConnectionError(f"no answer on {subject}: {line!r}")

    def state(self, stream: str) -> dict[str, Any]:
        """Return the state of a stream, with its subjects."""
        answer = self.ask(f"$JS.API.STREAM.INFO.{stream}", b'{"subjects_filter": ">"}')
        return dict(answer["state"])

    def forget_everything(self) -> None:
        """Delete every stream."""
        for stream in self.ask("$JS.API.STREAM.NAMES").get("streams") or ():
            self.ask(f"$JS.API.STREAM.DELETE.{stream}")

    def requests(self) -> int:
        """Return how many requests JetStream has answered since the server started."""
        return int(self.ask("$JS.API.INFO")["api"]["total"])

    def listeners(self, subject: str) -> int:
        """Return how many connections have subscribed to a subject."""
        with urlopen(f"http://127.0.0.1:{self._monitor}/connz?subs=1", timeout=_START_SECONDS) as answer:
            connections = json.load(answer)["connections"]
        return sum(subject in (one.get("subscriptions_list") or ()) for one in connections)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"nats-server ended: {(self.directory / 'nats.log').read_text()[-2000:]}")
        try:
            return "memory" in self.ask("$JS.API.INFO")
        except (OSError, ValueError):
            return False

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
def running_nats(
    *, user: str | None = None, password: str | None = None, options: Sequence[str] = (), **variables: str
) -> Iterator[NatsServer]:
    """Run a server of one's own, with further options of nats-server and variables of its environment."""
    if shutil.which("nats-server") is None:
        pytest.skip("nats-server is missing; apt-get install nats-server")
    with tempfile.TemporaryDirectory(prefix="nats-test-") as directory:
        server = NatsServer(Path(directory), user=user, password=password, options=options, **variables)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def running_cluster(size: int = 3) -> Iterator[list[NatsServer]]:
    """Run servers that keep streams together; each may be killed and started again."""
    routes = [free_port() for _ in range(size)]
    known = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
    with ExitStack() as stack:
        servers = []
        for number, port in enumerate(routes):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nats-test-")))
            options = ["-n", f"server-{number}", "--cluster_name", "tests"]
            options += ["--cluster", f"nats://127.0.0.1:{port}", "--routes", known]
            servers.append(NatsServer(directory, options=options))
            stack.callback(servers[-1].kill)
            servers[-1].start(wait=False)
        yield servers


@pytest.fixture(scope="session")
def shared_nats() -> Iterator[NatsServer]:
    """The server that tests share which leave it as it is."""
    with running_nats() as server:
        yield server


@pytest.fixture
def nats_server(shared_nats: NatsServer) -> NatsServer:
    """A server that runs, empty."""
    shared_nats.forget_everything()
    return shared_nats


@pytest.fixture
def own_nats() -> Iterator[NatsServer]:
    """A server for one test, which may do to it what it likes."""
    with running_nats() as server:
        yield server
