"""A real RabbitMQ for tests, by one fixture: the `rabbitmq-server` program on loopback, with everything of its own.

    async def test_it(rabbitmq_server):          # shared by the whole run: take a prefix of your own
        RabbitOptions(SecretStr(rabbitmq_server.url), prefix=...)

    async def test_a_fault(own_rabbitmq):        # one's own: kill it, start it again

Neither the system's service nor its port, user, cookie or files are touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess  # noqa: TID251  # starts the server under test
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_connection
from uuid import uuid4

import pytest

from tests.certificates import self_signed
from tests.ports import free_port

PASSWORD = "tidal-marsh-41"
"""Of the only user."""

_START_SECONDS = 90.0
_PAUSE_SECONDS = 0.05
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONTROL = _SERVER.with_name("rabbitmqctl")

_RUN = f"""
epmd &
until epmd -names >/dev/null; do sleep 0.1; done
({_SERVER}; kill -KILL 0) &
read -r _
kill -KILL 0
"""
"""Ends with the broker, and ends the broker when its standard input does: with this process, however that ends."""


class RabbitServer:
    """A broker that a test may kill and start again on the same port. What was confirmed is on its disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.tls_port = free_port()
        self.certificate = self_signed(directory, "rabbitmq")
        self._process: subprocess.Popen[bytes] | None = None
        name = f"rabbit{uuid4().hex[:8]}@localhost"
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.certificate}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {self.certificate.with_suffix('.key')}\n"
            f"default_pass = {PASSWORD}\n"
            "default_user = tests\n"
            "log.file.level = warning\n"
            "vm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 1MB\n"
        )
        (directory / "plugins").write_text("[].\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # One scheduler is enough for tests, and leaves the machine to them; it waits asleep, not spinning.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    @property
    def url(self) -> str:
        """Where it answers, with the password."""
        return f"amqp://tests:{PASSWORD}@127.0.0.1:{self.port}/%2F"

    @property
    def tls_url(self) -> str:
        """Where it answers over TLS, without the authority that vouches for it."""
        return f"amqps://tests:{PASSWORD}@127.0.0.1:{self.tls_port}/%2F"

    def start(self) -> None:
        """Start it, or start it again; returns when it answers."""
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _RUN],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        _until(self._answers, f"rabbitmq-server does not answer on port {self.port}")

    def kill(self) -> None:
        """End it as a crash would, and all that it started."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_START_SECONDS)
            if process.stdin is not None:
                process.stdin.close()
            _until(lambda: not _listens(self.port), "the broker that was killed still listens")

    def be_short_of_memory(self, is_short: bool) -> None:
        """Raise the alarm that lets nobody put, or end it; returns when it is so."""
        self.control("set_vm_memory_high_watermark", "0.000001" if is_short else "0.9")

    def control(self, *words: str) -> None:
        """Run `rabbitmqctl` on it; what it is told is done then."""
        subprocess.run([_CONTROL, *words], env=self._environment, cwd=self.directory, check=True, capture_output=True)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"rabbitmq-server ended: {(self.directory / 'output').read_text()[-2000:]}")
        # It listens on one after the other.
        return _listens(self.port) and _listens(self.tls_port)


@contextmanager
def running_rabbitmq() -> Iterator[RabbitServer]:
    """Run a broker of one's own."""
    with tempfile.TemporaryDirectory(prefix="rabbitmq-test-", ignore_cleanup_errors=True) as directory:
        server = RabbitServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitServer]:
    """The broker that tests share which leave it running."""
    _need_rabbitmq()
    with running_rabbitmq() as server:
        yield server


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitServer]:
    """A broker for one test, which may do to it what it likes."""
    _need_rabbitmq()
    with running_rabbitmq() as server:
        yield server


def _need_rabbitmq() -> None:
    if not _SERVER.exists() or shutil.which("epmd") is None:
        pytest.skip("rabbitmq-server is missing; apt-get install rabbitmq-server")


def _listens(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=_START_SECONDS).close()
    except OSError:
        return False
    return True


def _until(holds: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(_PAUSE_SECONDS)
