"""CONNECT and SOCKS5: what may pass through a tunnel and what may not."""

from __future__ import annotations

import socket
import ssl

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSStream

from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, Running, Serving
from tests.integration.egress.origins import Origin, scripted_origin
from tests.ports import free_port
from tests.unit.egress.test_tls_hello import SNI, extension, message, name_list, records

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ALERT = bytes.fromhex("15030100020231")
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def connect(host: str, port: int, host_field: str | None = None) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host_field or f'{host}:{port}'}\r\n\r\n".encode()


def socks(host: str | bytes, port: int, command: int = 1, kind: int | None = None) -> bytes:
    """A greeting and a request, sent at once."""
    if isinstance(host, bytes):
        kind, address = kind or 3, bytes([len(host)]) + host
    elif ":" in host:
        kind, address = 4, socket.inet_pton(socket.AF_INET6, host)
    elif host.replace(".", "").isdigit():
        kind, address = 1, socket.inet_aton(host)
    else:
        kind, address = kind or 3, bytes([len(host)]) + host.encode()
    return b"\x05\x01\x00" + bytes([5, command, 0, kind]) + address + port.to_bytes(2)


async def open_tunnel(running: Running, way: str, host: str, port: int) -> anyio.abc.SocketStream:
    stream = await anyio.connect_tcp("127.0.0.1", running.port)
    if way == "connect":
        await stream.send(connect(host, port))
        expected = ESTABLISHED
    else:
        await stream.send(socks(host, port))
        expected = bytes.fromhex("05 00 05 00 00 01 00000000 0000")
    got = b""
    while len(got) < len(expected):
        got += await stream.receive(len(expected) - len(got))
    assert got == expected
    return stream


async def rest(stream: anyio.abc.ByteReceiveStream) -> bytes:
    got = b""
    try:
        while True:
            got += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return got


WAYS = pytest.mark.parametrize("way", ["connect", "socks"])


@WAYS
async def test_https_works_and_every_byte_is_the_origins(
    serving: Serving, tls_origin: Origin, certificate: Certificate, way: str
) -> None:
    async with serving(tls_ports=[tls_origin.port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            stream = await open_tunnel(running, way, "origin.test", tls_origin.port)
            async with await TLSStream.wrap(
                stream, hostname="origin.test", ssl_context=certificate.client, standard_compatible=False
            ) as secure:
                await secure.send(b"GET /tls HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n")
                assert (await rest(secure)).endswith(b"hello")
        usage = running.proxy.usage()
        assert not running.proxy.denials()
    assert usage.bytes_to_network > 300
    assert usage.bytes_from_network > 300
    assert tls_origin.seen[0].target == "/tls"


@WAYS
@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_hello_in_many_segments_and_records_is_read(serving: Serving, way: str, size: int) -> None:
    hello = records(message(SNI.replace(b"example.com", b"origin.test"), extension(21, bytes(200))), max(size, 16))

    async def handle(stream: anyio.abc.SocketStream) -> None:
        got = b""
        while len(got) < len(hello):
            got += await stream.receive()
        assert got == hello
        await stream.send(b"all of it")

    async with scripted_origin(handle) as port, serving(tls_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", port) as stream:
                for at in range(0, len(hello), size):
                    await stream.send(hello[at : at + size])
                assert await rest(stream) == b"all of it"


def hello_for(*names: bytes, ech: bool = False) -> bytes:
    extensions = [extension(0, name_list(*names))] if names else []
    return records(message(*extensions, *([extension(0xFE0D, bytes(40))] if ech else [])))


@WAYS
@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (hello_for(), "tls_server_name"),
        (hello_for(b"other.test"), "tls_server_name"),
        (hello_for(b"denied.test"), "denied_domains: denied.test"),
        (hello_for(b"evil.example"), "allowed_domains"),
        (hello_for(b"origin.test\0.evil.example"), "tls_server_name"),
        (hello_for(b"127.0.0.1"), "tls_server_name"),
        (hello_for(b"origin.test", b"evil.example"), "tls_client_hello"),
        (hello_for(b"origin.test", ech=True), "tls_ech"),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "tls_client_hello"),
        (b"\x16\x03\x01\xff\xff", "tls_client_hello"),
        (b"\x16not tls at all", "tls_client_hello"),
    ],
)
async def test_a_hello_that_may_not_pass_gets_an_alert_and_reaches_nobody(
    serving: Serving, way: str, data: bytes, rule: str
) -> None:
    received: list[bytes] = []

    async def handle(stream: anyio.abc.SocketStream) -> None:
        received.append(await stream.receive())

    async with scripted_origin(handle) as port, serving(tls_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", port) as stream:
                await stream.send(data)
                await stream.send_eof()
                assert await rest(stream) == ALERT
        assert running.rules_denied() == [rule]
        assert running.proxy.usage().bytes_to_network == 0
    assert not received


@WAYS
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x05\x01\x00",
        b"EHLO x\r\n",
        b"\x15\x03\x03",
    ],
)
async def test_another_protocol_on_a_tls_port_is_refused(serving: Serving, way: str, data: bytes) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        assert not await stream.receive(), "the origin got something"

    async with scripted_origin(handle) as port, serving(tls_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", port) as stream:
                await stream.send(data)
                assert await rest(stream) == b""
        assert running.rules_denied() == ["protocol"]
        assert running.proxy.usage().bytes_to_network == 0


@WAYS
async def test_plain_http_on_a_tls_port_is_refused(serving: Serving, origin: Origin, way: str) -> None:
    async with serving(tls_ports=[origin.port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", origin.port) as stream:
                await stream.send(b"GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n")
                assert await rest(stream) == b""
        assert running.rules_denied() == ["protocol"]
    assert not origin.seen


@WAYS
async def test_http_in_a_tunnel_is_decided_request_by_request(serving: Serving, origin: Origin, way: str) -> None:
    own = f"GET /in HTTP/1.1\r\nHost: origin.test:{origin.port}\r\n\r\n"
    with_close = own.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    async with serving(ports=[origin.port], inject_headers=lambda host, port: {"X-Key": host}) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", origin.port) as stream:
                await stream.send((own + with_close).encode())
                assert (await rest(stream)).count(b"HTTP/1.1 200") == 2
    assert [(seen.target, seen.values("X-Key")) for seen in origin.seen] == [("/in", ["origin.test"])] * 2


@WAYS
@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n", "GET http://other.test:{port}/ HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n",
        "CONNECT other.test:{port} HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n",
        "GET x HTTP/1.1\r\nHost: origin.test\r\n\r\n",
        "CONNECT origin.test:{port} HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n", "NICK me\r\nUSER x\r\n",
    ],
)  # fmt: skip
async def test_http_in_a_tunnel_for_another_host_is_refused(
    serving: Serving, origin: Origin, way: str, text: str
) -> None:
    async with serving(ports=[origin.port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", origin.port) as stream:
                await stream.send(text.replace("{port}", str(origin.port)).encode())
                await stream.send_eof()
                assert (await rest(stream)).startswith(b"HTTP/1.1 400 ")
    assert not origin.seen


@WAYS
async def test_a_raw_port_lets_the_server_speak_first(serving: Serving, way: str) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        await stream.send(b"SSH-2.0-server\r\n")
        await stream.send((await stream.receive()).upper())

    async with scripted_origin(handle) as port, serving(raw_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, way, "origin.test", port) as stream:
                assert await stream.receive() == b"SSH-2.0-server\r\n"
                await stream.send(b"hello")
                assert await rest(stream) == b"HELLO"


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("denied.test", "denied_domains: denied.test"), ("evil.example", "allowed_domains"),
        ("127.0.0.2", "allowed_domains"), ("::1", "allowed_domains"), ("::ffff:127.0.0.1", "allowed_domains"),
        ("inside.test", "address: private"), ("metadata.test", "address: cloud metadata"),
    ],
)  # fmt: skip
@WAYS
async def test_both_ways_in_give_the_same_refusal(serving: Serving, way: str, host: str, rule: str) -> None:
    port = free_port()
    async with serving(ports=[port]) as running:
        if way == "connect":
            shown = f"[{host}]" if ":" in host else host
            assert (await running.talk(connect(shown, port))).startswith(b"HTTP/1.1 403 ")
        else:
            assert (await running.talk(socks(host, port)))[:4] == b"\x05\x00\x05\x02"
        assert running.rules_denied() == [rule]
        assert running.proxy.usage().dialled == 0


@WAYS
async def test_a_port_that_is_not_allowed_is_refused(serving: Serving, way: str) -> None:
    async with serving(ports=[1]) as running:
        await running.talk((connect if way == "connect" else socks)("origin.test", 22))
        assert running.rules_denied() == ["ports"]


async def test_an_address_that_is_allowed_exactly_works_by_both_ways(serving: Serving) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        await stream.send(b"ok")

    async with scripted_origin(handle) as port, serving(tls_ports=[port]) as running:
        for way in ("connect", "socks"):
            with anyio.fail_after(BOUND_SECONDS):
                async with await open_tunnel(running, way, "127.0.0.1", port) as stream:
                    await stream.send(hello_for())
                    assert await rest(stream) == b"ok"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x05\x01\x02", "05ff"), (b"\x05\x00", "05ff"), (b"\x05\x02\x01\x02", "05ff"),
        (socks("origin.test", 80, command=2), "0500 05070001000000000000"),
        (socks("origin.test", 80, command=3), "0500 05070001000000000000"),
        (socks("origin.test", 80, kind=9), "0500 05080001000000000000"),
        (b"\x05\x01\x00\x05\x01\x01\x01", "0500 05010001000000000000"),
        (b"\x05\x01\x00\x04\x01\x00\x01", "0500 05010001000000000000"),
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00", "005b000000000000"),
        (socks(b"", 80), "0500 05020001000000000000"), (socks(b"\xff\xfe", 80), "0500 05020001000000000000"),
        (socks(b"0x7f.1", 80), "0500 05020001000000000000"), (socks(b"origin.test\0", 80), "0500 05020001000000000000"),
        (socks(b"[::1]", 80), "0500 05020001000000000000"), (socks(b"origin.test", 0), "0500 05020001000000000000"),
        (socks(b"nowhere.test", 80), "0500 05040001000000000000"), (socks(b"127.0.0.1", 80), None),
    ],
)  # fmt: skip
async def test_every_socks_request_gets_the_reply_that_the_protocol_has_for_it(
    serving: Serving, data: bytes, answer: str | None
) -> None:
    closed = free_port()
    if answer is None:
        data, answer = data[:-2] + closed.to_bytes(2), "0500 05050001000000000000"
    async with serving(ports=[80, closed]) as running:
        assert await running.talk(data) == bytes.fromhex(answer)


async def test_a_socks_handshake_byte_by_byte_works(serving: Serving, origin: Origin) -> None:
    handshake = socks("origin.test", origin.port)
    request = f"GET / HTTP/1.1\r\nHost: origin.test:{origin.port}\r\nConnection: close\r\n\r\n".encode()
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(*(bytes([byte]) for byte in handshake), request)
    assert answer.endswith(b"hello")


async def test_a_client_that_sends_its_hello_with_connect_loses_nothing(serving: Serving) -> None:
    hello = hello_for(b"origin.test")

    async def handle(stream: anyio.abc.SocketStream) -> None:
        assert await stream.receive() == hello + b"early"
        await stream.send(b"ok")

    async with scripted_origin(handle) as port, serving(tls_ports=[port]) as running:
        assert await running.talk(connect("origin.test", port) + hello + b"early") == ESTABLISHED + b"ok"


@pytest.mark.parametrize("field", ["origin.test", "ORIGIN.test."])
async def test_the_host_field_of_connect_may_leave_the_port_out(serving: Serving, field: str) -> None:
    async with scripted_origin(lambda stream: rest(stream)) as port, serving(tls_ports=[port]) as running:  # type: ignore[arg-type, return-value]  # its result is not used
        stream = await anyio.connect_tcp("127.0.0.1", running.port)
        async with stream:
            await stream.send(connect("origin.test", port, field))
            assert await stream.receive() == ESTABLISHED


async def test_python_shows_its_user_that_access_was_denied(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    async with serving(tls_ports=[tls_origin.port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", tls_origin.port) as stream:
                with pytest.raises((ssl.SSLError, anyio.BrokenResourceError)) as caught:
                    await TLSStream.wrap(stream, hostname="other.test", ssl_context=certificate.client)
    assert "ACCESS_DENIED" in str(caught.value.__cause__ or caught.value)
