"""TLS in memory around a socket: both ways at once, and every kind of end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sandbox_adapters.egress.authority import CertificateAuthority
from sandbox_adapters.egress.rules import read_entries
from sandbox_adapters.egress.streams import Activity, TcpStream
from sandbox_adapters.egress.tls_stream import TlsStream

pytestmark = pytest.mark.anyio

BOUND_SECONDS = 30
AUTHORITY = CertificateAuthority.generate(read_entries("domains", ("a.test",)))
CLIENT = ssl.create_default_context(cadata=AUTHORITY.pem)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[TlsStream, TlsStream, TcpStream]]:
    """The client's side, the server's side, and what is under the client's."""
    first, second = connected()
    with TcpStream(first, Activity()) as under, TcpStream(second, Activity()) as other:
        client = TlsStream(under, CLIENT, server_name="a.test")
        server = TlsStream(other, AUTHORITY.context_for("a.test"))
        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.handshake)
                tasks.start_soon(server.handshake)
            yield client, server, under


async def read_all(stream: TlsStream) -> bytes:
    got = b""
    while piece := await stream.receive():
        got += piece
    return got


async def test_megabytes_go_both_ways_at_once() -> None:
    data = bytes(range(256)) * 16_000
    got: dict[str, bytes] = {}

    async def write(stream: TlsStream) -> None:
        await stream.send(data)
        await stream.finish_sending()

    async def read(name: str, stream: TlsStream) -> None:
        got[name] = await read_all(stream)

    async with pair() as (client, server, _), anyio.create_task_group() as tasks:
        for name, stream in (("client", client), ("server", server)):
            tasks.start_soon(write, stream)
            tasks.start_soon(read, name, stream)
    assert got == {"client": data, "server": data}


async def test_two_senders_do_not_mix_their_records() -> None:
    async with pair() as (client, server, _), anyio.create_task_group() as tasks:
        tasks.start_soon(client.send, b"a" * 3_000_000)
        tasks.start_soon(client.send, b"b" * 3_000_000)
        got = b""
        while len(got) < 6_000_000:
            got += await server.receive()
    assert sorted((got[:1], got[-1:])) == [b"a", b"b"]
    assert got == got[:1] * 3_000_000 + got[-1:] * 3_000_000


async def test_what_is_pushed_back_comes_first() -> None:
    async with pair() as (client, server, _):
        await client.send(b"later")
        server.push_back(b"now")
        assert await server.receive() == b"now"
        assert await server.receive() == b"later"


async def test_an_end_that_tls_announced_is_an_end_and_the_other_way_goes_on() -> None:
    async with pair() as (client, server, _):
        await client.finish_sending()
        assert await server.receive() == b""
        assert await server.receive() == b""
        await server.send(b"still there")
        await server.finish_sending()
        assert await read_all(client) == b"still there"


async def test_an_end_that_tls_did_not_announce_is_a_broken_connection() -> None:
    async with pair() as (client, server, under):
        await client.send(b"some")
        await under.finish_sending()
        assert await server.receive() == b"some"
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


async def test_bytes_that_are_not_tls_are_a_broken_connection() -> None:
    async with pair() as (_, server, under):
        await under.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


async def test_a_changed_record_is_a_broken_connection() -> None:
    async with pair() as (_, server, under):
        await under.send(bytes.fromhex("17030300 20") + bytes(32))
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


async def test_abort_resets() -> None:
    async with pair() as (client, server, _):
        client.abort()
        with pytest.raises(anyio.BrokenResourceError):
            await server.receive()


async def test_the_wrong_name_fails_the_handshake() -> None:
    first, second = connected()
    with TcpStream(first, Activity()) as under, TcpStream(second, Activity()) as other:
        client = TlsStream(under, CLIENT, server_name="b.test")
        server = TlsStream(other, AUTHORITY.context_for("a.test"))
        failed: list[type[Exception]] = []

        async def shake(stream: TlsStream) -> None:
            try:
                await stream.handshake()
            except ssl.SSLError as error:
                failed.append(type(error))

        with anyio.fail_after(BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(shake, client)
                tasks.start_soon(shake, server)
                await anyio.lowlevel.checkpoint()
        assert ssl.SSLCertVerificationError in failed
