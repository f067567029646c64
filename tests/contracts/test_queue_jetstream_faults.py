"""JetStreamQueue when NATS is killed, paused, started late, emptied, or wants a password; and what its errors tell."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess  # noqa: TID251  # the taker under test is a process of its own
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr

from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.queues.jetstream import JetStreamQueue
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.ports.queue import Delivery, QueueItem
from sandbox_core.testing.queue_harness import everyone, item, take_all
from tests.certificates import self_signed
from tests.nats_server import NatsServer, running_cluster, running_nats

BOUND_SECONDS = 120
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nats" / "nats.conf"
PASSWORD = "s3cr:et@/?#"  # every character that a URL gives a meaning to
QUOTED = "s3cr%3Aet%40%2F%3F%23"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def queue_at(url: str, *, visibility: float = 2, timeout: float = 20) -> AsyncIterator[JetStreamQueue]:
    options = NatsOptions(SecretStr(url), timeout_seconds=timeout)
    async with (
        NatsConnection(options) as connection,
        JetStreamQueue(connection=connection, visibility_seconds=visibility) as queue,
    ):
        yield queue


async def take(queue: JetStreamQueue) -> Delivery:
    """Take as the supervisor does: again after an outage."""
    with anyio.fail_after(BOUND_SECONDS):
        while True:
            try:
                return await queue.take(everyone)
            except StoreUnavailable:
                await anyio.sleep(0.1)


async def test_what_waits_survives_a_killed_server_in_its_order(own_nats: NatsServer) -> None:
    async with queue_at(own_nats.url, visibility=60) as queue:
        for put in (puts := [item() for _ in range(5)]):
            await queue.put(put)
        held = await take(queue)
        own_nats.kill()
        own_nats.start()
        with anyio.fail_after(BOUND_SECONDS):
            await queue.done(held)
            assert await queue.depth() == 4
        assert [(await take(queue)).item for _ in range(4)] == puts[1:]


async def test_what_is_done_while_nats_is_away_is_no_error_and_comes_back(own_nats: NatsServer) -> None:
    async with queue_at(own_nats.url, timeout=0.5) as queue:
        await put_when_back(queue, put := item())
        held = await take(queue)
        own_nats.kill()
        await queue.done(held)
        own_nats.start()
        assert (await take(queue)).item == put


async def test_requests_and_those_that_failed_are_counted(own_nats: NatsServer) -> None:
    async with NatsConnection(NatsOptions(SecretStr(own_nats.url), timeout_seconds=5)) as connection:
        await connection.request("$JS.API.INFO")
        assert (connection.asked, connection.failed) == (1, 0)
        own_nats.kill()
        with pytest.raises(StoreUnavailable):
            await connection.request("$JS.API.INFO")
        assert (connection.asked, connection.failed) == (2, 1)


async def test_a_waiting_taker_learns_that_nats_is_away_and_takes_when_it_is_back(own_nats: NatsServer) -> None:
    learnt, taken = anyio.Event(), []
    async with queue_at(own_nats.url, timeout=1) as queue:

        async def wait() -> None:
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{own_nats.port}"):
                await queue.take(everyone)
            learnt.set()
            taken.append((await take(queue)).item)

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                while not own_nats.listeners("sandbox.notice"):  # noqa: ASYNC110  # the server tells nobody
                    await anyio.sleep(0.01)
                own_nats.kill()
                await learnt.wait()
                own_nats.start()
                await put_when_back(queue, put := item())
    assert taken == [put]


async def put_when_back(queue: JetStreamQueue, put: QueueItem) -> None:
    """Put, again while NATS is away or slow."""
    with anyio.fail_after(BOUND_SECONDS):
        while True:
            try:
                return await queue.put(put)
            except StoreUnavailable:
                await anyio.sleep(0.05)


async def test_nats_may_come_after_the_server(own_nats: NatsServer) -> None:
    own_nats.stop()
    async with queue_at(own_nats.url, timeout=0.5) as queue:
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await queue.depth()
        own_nats.start()
        with anyio.fail_after(BOUND_SECONDS):
            await put_when_back(queue, put := item())
            assert (await take(queue)).item == put


async def test_no_wait_is_without_a_bound_when_nats_hangs(own_nats: NatsServer) -> None:
    async with queue_at(own_nats.url, timeout=0.5) as queue:
        await put_when_back(queue, item())
        held = await take(queue)
        own_nats.pause()
        with anyio.fail_after(BOUND_SECONDS):
            for call in (queue.depth, queue.stats):
                with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
                    await call()
            with pytest.raises(StoreUnavailable):
                await queue.put(item())
            with pytest.raises(StoreUnavailable):
                await queue.take(everyone)
            await queue.done(held)
        own_nats.resume()


async def test_streams_that_an_operator_deleted_are_made_again(own_nats: NatsServer) -> None:
    async with queue_at(own_nats.url) as queue:
        await queue.put(item())
        own_nats.forget_everything()
        assert await queue.depth() == 0
        own_nats.forget_everything()
        await queue.put(put := item())
        assert await take_all(queue, 1) == [put]


_TAKER = """
import sys, anyio
from pydantic import SecretStr
from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.queues.jetstream import JetStreamQueue

async def admit(item):
    return True

async def main():
    async with NatsConnection(NatsOptions(SecretStr(sys.argv[1]))) as connection:
        async with JetStreamQueue(connection=connection, visibility_seconds=2) as queue:
            print((await queue.take(admit)).item.execution_id, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


def taker(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _TAKER, url], stdout=subprocess.PIPE)


async def test_what_a_killed_process_had_taken_is_taken_by_another(own_nats: NatsServer) -> None:
    async with queue_at(own_nats.url) as queue:
        await queue.put(put := item())
        with taker(own_nats.url) as dying:
            assert dying.stdout is not None
            try:
                assert (await anyio.to_thread.run_sync(dying.stdout.readline)).decode().strip() == put.execution_id
            finally:
                dying.send_signal(signal.SIGKILL)
        assert (await take(queue)).item == put


@pytest.mark.parametrize("given", ["nobody:wrong-9f3", "only-a-token-9f3"])
async def test_a_refused_password_is_told_without_it(
    given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        running_nats(user="sandbox", password=PASSWORD) as server,
        pytest.raises(StoreUnavailable, match="refuses the user or the password") as caught,
    ):
        async with queue_at(f"nats://{given}@127.0.0.1:{server.port}"):
            pytest.fail("it was let in")
    shown = "".join(f"{error!r} {error}" for error in causes(caught.value)) + caplog.text
    assert "9f3" not in shown


async def test_a_password_is_decoded_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running_nats(user="sandbox", password=PASSWORD) as server:
        async with queue_at(f"nats://sandbox:{QUOTED}@127.0.0.1:{server.port}", timeout=1) as queue:
            await put_when_back(queue, item())
            server.kill()
            with pytest.raises(StoreUnavailable) as caught:
                await queue.depth()
    shown = "".join(f"{error!r} {error}" for error in causes(caught.value)) + caplog.text
    assert f"127.0.0.1:{server.port}" in shown
    assert PASSWORD not in shown
    assert QUOTED not in shown


def causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what caused it."""
    return [] if error is None else [error, *causes(error.__cause__ or error.__context__)]


@asynccontextmanager
async def false_server(version: str) -> AsyncIterator[tuple[int, bytearray]]:
    """Greet as a server without TLS and JetStream; yields the port, and what clients have said."""
    heard = bytearray()
    info = json.dumps({"server_id": "x", "version": version, "headers": True, "max_payload": 1000})

    async def serve(stream: anyio.abc.SocketStream) -> None:
        await stream.send(f"INFO {info}\r\n".encode())
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    said = await stream.receive()
                    heard.extend(said)
                    if b"PING\r\n" in said:
                        await stream.send(b"PONG\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port), heard
        tasks.cancel_scope.cancel()


async def test_a_password_for_tls_is_not_sent_to_a_server_without_it() -> None:
    async with (
        false_server("2.10.1") as (port, heard),
        queue_at(f"tls://a:s3cret@127.0.0.1:{port}", timeout=3) as queue,
    ):
        with pytest.raises(StoreUnavailable, match="has no TLS, which the URL asks for"):
            await queue.depth()
        assert bytes(heard) == b""


async def test_nats_over_tls_is_reached_with_the_authority_named_and_refused_without_it(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "nats")
    tls = ["--tls", "--tlscert", str(certificate), "--tlskey", str(certificate.with_suffix(".key"))]
    options = [*tls, "--user", "app", "--pass", "s3cret"]
    server = NatsServer(tmp_path, options=options)
    try:
        server.start(wait=False)
        url = f"tls://app:s3cret@127.0.0.1:{server.port}"
        async with queue_at(f"{url}?ssl_ca_certs={certificate}") as queue:
            await put_when_back(queue, put := item())
            assert (await take(queue)).item == put
        async with queue_at(url, timeout=3) as untrusting:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await untrusting.depth()
    finally:
        server.kill()


async def test_a_server_that_is_too_old_is_told_as_such() -> None:
    async with false_server("2.7.4") as (port, _), queue_at(f"nats://127.0.0.1:{port}") as queue:
        with pytest.raises(StoreUnavailable, match=r"is 2\.7\.4, and the queue needs 2\.9 or newer"):
            await queue.depth()


async def test_the_user_of_the_example_configuration_may_do_what_the_queue_does_and_no_more() -> None:
    options = ["-c", str(CONFIGURATION)]
    with running_nats(user="sandbox", password="s3cret", options=options, NATS_PASSWORD="s3cret") as server:
        async with queue_at(f"nats://sandbox:s3cret@127.0.0.1:{server.port}", visibility=1) as queue:
            taken: list[QueueItem] = []

            async def wait() -> None:
                taken.append((await queue.take(everyone, frozenset({"gpu"}))).item)

            with anyio.fail_after(BOUND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    while not server.listeners("sandbox.notice.labels"):  # noqa: ASYNC110  # the server tells nobody
                        await anyio.sleep(0.01)
                    await queue.put(put := item("a", "s", "gpu"))
                await queue.put(other := item())
                assert await queue.depth() == 1
                assert (await queue.stats()).oldest_queued_at == other.queued_at
                assert await queue.remove(other.execution_id)
            assert taken == [put]
        async with queue_at(f"nats://sandbox:s3cret@127.0.0.1:{server.port}", visibility=9) as longer:
            assert await longer.depth() == 0
        for subject in ("$JS.API.STREAM.DELETE.sandbox_waiting", "$JS.API.STREAM.CREATE.other", "other"):
            with pytest.raises(ConnectionError, match="Permissions Violation"):
                server.ask(subject)


async def test_a_cluster_loses_nothing_with_the_server_that_led(anyio_backend: str) -> None:
    with running_cluster() as servers:
        url = ",".join(server.url for server in servers) + "?replicas=3"
        async with queue_at(url, visibility=1, timeout=2) as queue:
            with anyio.fail_after(BOUND_SECONDS):
                for put in (puts := [item() for _ in range(6)]):
                    await put_when_back(queue, put)
                led = await leader(servers)
                led.kill()
                taken: list[QueueItem] = []
                while len(set(taken)) < len(puts):
                    delivery = await take(queue)
                    taken.append(delivery.item)
                    await queue.done(delivery)
                assert set(taken) == set(puts)
                led.start(wait=False)
                await put_when_back(queue, late := item())
                while (await take(queue)).item != late:
                    pass  # one whose end the servers had not heard


async def leader(servers: Sequence[NatsServer]) -> NatsServer:
    """Return who leads the stream of items."""
    while True:
        with suppress(ConnectionError, KeyError):
            told = servers[0].ask("$JS.API.STREAM.INFO.sandbox_waiting")
            return servers[int(told["cluster"]["leader"].removeprefix("server-"))]
        await anyio.sleep(0.1)
