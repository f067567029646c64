"""Why a server cannot be reached: the system's own words, and nothing of what a client library puts around them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from sandbox_adapters.outage_reasons import reason_of
from tests.certificates import self_signed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ClientError(Exception):
    """What a client library raises; its text quotes the URL."""


class ClientOSError(OSError):
    """The same, of a library that makes it one of the system's."""


def behind(error: Exception) -> Exception:
    try:
        try:
            raise error
        except type(error) as first:
            raise ClientError("amqp://user:s3cret@host") from first
    except ClientError as made:
        return made


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('s3cret', 1)"), "Connection refused"),
        (behind(ConnectionResetError(104, "s3cret")), "Connection reset by peer"),
        (behind(behind(FileNotFoundError(2, "s3cret"))), "No such file or directory"),
        (socket.gaierror(-2, "Name or service not known"), "its name cannot be resolved: Name or service not known"),
        (UnicodeError("s3cret"), "its name is no host name"),
        (OSError("Multiple exceptions: [Errno 113] s3cret, [Errno 111] s3cret"), "No route to host"),
        (OSError("s3cret"), "OSError"),
        (ClientOSError(111, "s3cret"), "ClientOSError"),
        (behind(ClientError("s3cret")), "ClientError"),
        ([ClientError("s3cret"), behind(ConnectionRefusedError(111, "s3cret"))], "Connection refused"),
        ([], "no reason is known"),
    ],
)
def test_the_first_known_reason_is_told_and_no_text_of_others(error: Exception | list[Exception], reason: str) -> None:
    assert reason_of(error) == reason


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, "server")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, certificate.with_suffix(".key"))

    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=serving) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLError) as refused:
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
        assert reason_of(refused.value) == "its certificate is not accepted: self-signed certificate"


async def test_what_redis_py_raises_has_the_reason_behind_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = Redis(host="127.0.0.1", port=port)
    try:
        with pytest.raises(RedisConnectionError) as refused:
            await client.execute_command("PING")  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        assert reason_of(refused.value) == "Connection refused"
    finally:
        await client.aclose()
