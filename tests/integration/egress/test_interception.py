"""TLS that ends in the proxy: who gets the operator's header, who never does, and what hostile code can make of it."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSAttribute, TLSStream

from sandbox_adapters.egress import EgressLimits, OperatorSecrets, Secret
from sandbox_adapters.egress.authority import CertificateAuthority
from sandbox_adapters.egress.interception import verifying_context
from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, Running, Serving
from tests.integration.egress.origins import Origin, answering, http_origin, scripted_origin
from tests.integration.egress.test_tunnels import WAYS, hello_for, open_tunnel

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

VALUE = "s3cret-value"
SENT = f"Bearer {VALUE}"
CLOSE = "Connection: close\r\n"


@dataclass
class Heard:
    """Everything that came back to the sandbox."""

    got: bytes = b""
    certificate: dict[str, Any] = field(default_factory=dict)
    binary_certificate: bytes = b""
    protocol: str | None = None


@dataclass(frozen=True)
class Setting:
    """What the proxy adds, and what a program inside trusts."""

    options: dict[str, Any]
    authority: CertificateAuthority

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.pem)


def secret(*domains: str, **given: Any) -> Secret:
    return Secret("one", domains, **{"header": "Authorization", "value": SENT, **given})


def setting(certificate: Certificate | None, *secrets: Secret) -> Setting:
    secrets = secrets or (secret("origin.test"),)
    authority = CertificateAuthority.generate([entry for item in secrets for entry in item.entries])
    upstream = verifying_context()
    if certificate is not None:
        upstream.load_verify_locations(certificate.file)
    injection = OperatorSecrets(secrets, authority, upstream=upstream).for_principal(None)
    options = {"inject_headers": injection.inject_headers, "interception": injection.interception}
    return Setting(options, authority)


@asynccontextmanager
async def secured(
    running: Running,
    context: ssl.SSLContext,
    port: int,
    host: str = "origin.test",
    way: str = "connect",
    *,
    standard_compatible: bool = True,
) -> AsyncIterator[TLSStream]:
    async with (
        await open_tunnel(running, way, host, port) as stream,
        await TLSStream.wrap(
            stream, hostname=host, ssl_context=context, standard_compatible=standard_compatible
        ) as secure,
    ):
        yield secure


async def talk(secure: anyio.abc.ByteStream, *pieces: bytes) -> bytes:
    """Send `pieces`; everything that comes back, which must end as TLS does. A raw end raises."""
    got = b""
    for piece in pieces:
        await secure.send(piece)
    try:
        while True:
            got += await secure.receive()
    except anyio.EndOfStream:
        return got


async def ask(
    running: Running,
    context: ssl.SSLContext,
    port: int,
    *pieces: bytes,
    host: str = "origin.test",
    way: str = "connect",
) -> bytes:
    with anyio.fail_after(BOUND_SECONDS):
        async with secured(running, context, port, host, way) as secure:
            return await talk(secure, *pieces)


async def ask_blindly(running: Running, certificate: Certificate, origin: Origin, host: str) -> bool:
    """Ask through a blind tunnel; True when the origin itself answers."""
    with anyio.fail_after(BOUND_SECONDS):
        client = certificate.client
        async with secured(running, client, origin.port, host, standard_compatible=False) as secure:
            await secure.send(get(origin.port, host=host))
            return (await secure.receive()).startswith(b"HTTP/1.1 200")


def get(port: int, path: str = "/", extra: str = CLOSE, host: str = "origin.test") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{extra}\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def nothing_shows_it(running: Running, *answers: bytes) -> None:
    shown = b"".join(answers) + repr((running.proxy.denials(), running.proxy.usage())).encode()
    assert VALUE.encode() not in shown


@WAYS
async def test_the_header_arrives_and_the_program_sees_neither_it_nor_a_key(
    serving: Serving, tls_origin: Origin, certificate: Certificate, way: str
) -> None:
    made = setting(certificate)
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, get(tls_origin.port, "/a?b"), way=way)
        assert not running.proxy.denials()
        assert running.proxy.usage().bytes_to_network > 300
        nothing_shows_it(running, answer)
    assert status(answer) == 200
    assert answer.endswith(b"hello")
    [seen] = tls_origin.seen
    assert (seen.method, seen.target) == ("GET", "/a?b")
    assert seen.values("Authorization") == [SENT]
    assert seen.values("Host") == [f"origin.test:{tls_origin.port}"]


async def test_a_header_of_the_same_name_that_the_program_sends_is_replaced(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    extra = f"authorization: mine\r\nAUTHORIZATION: also mine\r\nConnection: close, X-Y\r\nX-Y: {VALUE}\r\n"
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        assert status(await ask(running, made.client, tls_origin.port, get(tls_origin.port, extra=extra))) == 200
    [seen] = tls_origin.seen
    assert seen.values("Authorization") == [SENT]
    assert not seen.values("X-Y")


async def test_connection_cannot_take_the_header_away(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate, secret("origin.test", header="X-Api-Key"))
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        extra = "Connection: close, X-Api-Key\r\nX-Api-Key: mine\r\n"
        assert status(await ask(running, made.client, tls_origin.port, get(tls_origin.port, extra=extra))) == 200
    assert tls_origin.seen[0].values("X-Api-Key") == [SENT]


async def test_a_host_without_a_secret_keeps_its_own_certificate(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        # The certificate is the origin's: a client that trusts only it is content, one that trusts us is not.
        assert await ask_blindly(running, certificate, tls_origin, "other.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(running, made.client, tls_origin.port, host="other.test")
    assert [seen.values("Authorization") for seen in tls_origin.seen] == [[]]


async def test_without_interception_all_tls_is_the_origins(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    options = {**setting(certificate).options, "interception": None}
    async with serving(tls_ports=[tls_origin.port], **options) as running:
        assert await ask_blindly(running, certificate, tls_origin, "origin.test")
    assert not tls_origin.seen[0].values("Authorization")


async def test_plain_http_gets_the_header_only_where_the_secret_says_so(serving: Serving, origin: Origin) -> None:
    secrets = (secret("origin.test"), secret("other.test", header="X-Key", plain_http=True))
    async with serving(ports=[origin.port], **setting(None, *secrets).options) as running:
        for host in ("origin.test", "other.test"):
            request = f"GET http://{host}:{origin.port}/ HTTP/1.1\r\nHost: {host}:{origin.port}\r\n{CLOSE}\r\n"
            assert status(await running.talk(request.encode())) == 200
    assert [(seen.values("Authorization"), seen.values("X-Key")) for seen in origin.seen] == [([], []), ([], [SENT])]


@pytest.mark.parametrize("host", ["denied.test", "origin.evil.example"])
async def test_a_policy_that_does_not_allow_the_host_keeps_the_secret_in(
    serving: Serving, tls_origin: Origin, certificate: Certificate, host: str
) -> None:
    made = setting(certificate, secret("denied.test", "*.evil.example"))
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await running.talk(f"CONNECT {host}:{tls_origin.port} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert status(answer) in (400, 403)
        nothing_shows_it(running, answer)
    assert not tls_origin.seen


OTHERS = {
    "another host": "GET / HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n",
    "another port": "GET / HTTP/1.1\r\nHost: origin.test:1\r\n\r\n",
    "no host": "GET / HTTP/1.0\r\n\r\n",
    "two hosts": "GET / HTTP/1.1\r\nHost: origin.test:{port}\r\nHost: other.test\r\n\r\n",
    "user name": "GET / HTTP/1.1\r\nHost: origin.test:{port}@other.test\r\n\r\n",
    "full address": "GET http://other.test:{port}/ HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n",
    "own full address": "GET http://origin.test:{port}/ HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n",
    "full https address": "GET https://other.test/ HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n",
    "CONNECT inside": "CONNECT other.test:{port} HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n",
    "backslash": "GET /\\other.test HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n",
    "line folding in Host": "GET / HTTP/1.1\r\nHost: origin.test:{port}\r\n other.test\r\n\r\n",
    "bare CR": "GET / HTTP/1.1\r\nHost: origin.test:{port}\r\nX: a\rHost: other.test\r\n\r\n",
    "NUL": "GET / HTTP/1.1\r\nHost: origin.test:{port}\0.other.test\r\n\r\n",
    "space before colon": "GET / HTTP/1.1\r\nHost : other.test\r\nHost: origin.test:{port}\r\n\r\n",
    "two lengths": "POST / HTTP/1.1\r\nHost: origin.test:{port}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length and chunks": "POST / HTTP/1.1\r\nHost: origin.test:{port}\r\nContent-Length: 5\r\n"
    "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "odd chunking": "POST / HTTP/1.1\r\nHost: origin.test:{port}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Connection takes Host": "GET / HTTP/1.1\r\nHost: origin.test:{port}\r\nConnection: Host\r\n\r\n",
    "TRACE": "TRACE / HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS in TLS": "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    "SOCKS": "\x05\x01\x00",
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_request_with_two_readings_goes_nowhere(
    serving: Serving, tls_origin: Origin, certificate: Certificate, name: str
) -> None:
    made = setting(certificate, secret("origin.test", "other.test"))
    data = OTHERS[name].format(port=tls_origin.port).encode("latin-1")
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, data)
        assert status(answer) in (400, 405)
        nothing_shows_it(running, answer)
        assert running.proxy.usage().bytes_to_network == 0
    assert not tls_origin.seen


async def test_what_follows_a_length_is_the_next_request_and_not_part_of_this_one(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    inner = get(tls_origin.port, "/inner", "Authorization: mine\r\n", host="other.test")
    first = get(tls_origin.port, "/outer", f"Content-Length: {len(inner)}\r\n") + inner
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, first + get(tls_origin.port, "/next") + inner)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert [(seen.target, seen.body_bytes) for seen in tls_origin.seen] == [("/outer", len(inner)), ("/next", 0)]


async def test_pipelined_requests_are_decided_one_by_one(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    own = get(tls_origin.port, "/1", "")
    bad = get(tls_origin.port, "/2", "", host="other.test")
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, own + own + bad + get(tls_origin.port, "/4"))
        # What follows a request with two readings is not read any more.
        assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 400]
    assert [(seen.target, seen.values("Authorization")) for seen in tls_origin.seen] == [("/1", [SENT])] * 2


async def test_chunks_pass_and_their_trailers_and_upgrades_do_not(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    extra = (
        "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
    )
    body = b"5;x=y\r\nhello\r\n0\r\nAuthorization: mine\r\nHost: other.test\r\n\r\n"
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, get(tls_origin.port, extra=extra) + body)
        assert status(answer) == 200
    [seen] = tls_origin.seen
    assert seen.body_bytes == 5
    assert seen.values("Authorization") == [SENT]
    assert not [name for name, _ in seen.fields if name.lower() in ("upgrade", "trailer")]


async def test_an_answer_that_switches_protocols_is_not_taken(serving: Serving, certificate: Certificate) -> None:
    made = setting(certificate)
    reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    async with tls_scripted(certificate, reply) as port, serving(tls_ports=[port], **made.options) as running:
        extra = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        answer = await ask(running, made.client, port, get(port, extra=extra))
        assert status(answer) == 502
        nothing_shows_it(running, answer)


@asynccontextmanager
async def tls_scripted(certificate: Certificate, reply: bytes, *, ends: bool = True) -> AsyncIterator[int]:
    """An HTTPS server that answers any head with `reply`; `ends`: and says so in TLS."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        try:
            secure = await TLSStream.wrap(stream, server_side=True, ssl_context=certificate.server)
            head = b""
            while b"\r\n\r\n" not in head:
                head += await secure.receive()
            await secure.send(reply)
            if ends:
                await secure.aclose()
            else:
                await stream.send_eof()
                await stream.receive()
        except ssl.SSLError as error:
            raise anyio.BrokenResourceError from error

    async with scripted_origin(handle) as port:
        yield port


@pytest.mark.parametrize(("ends", "whole"), [(True, True), (False, False)])
async def test_an_answer_that_is_cut_off_is_not_taken_for_whole(
    serving: Serving, certificate: Certificate, ends: bool, whole: bool
) -> None:
    made = setting(certificate)
    reply = b"HTTP/1.1 200 OK\r\n\r\nup to the end"
    async with (
        tls_scripted(certificate, reply, ends=ends) as port,
        serving(tls_ports=[port], **made.options) as running,
    ):
        try:
            answer = await ask(running, made.client, port, get(port))
        except (ssl.SSLError, anyio.BrokenResourceError):
            answer = b""
    assert answer.endswith(b"0\r\n\r\n") is whole


@pytest.mark.parametrize(
    "data", [hello_for(), hello_for(b"other.test"), hello_for(b"denied.test"), hello_for(b"origin.test", ech=True)]
)
async def test_a_hello_for_another_name_is_refused_before_tls_begins(
    serving: Serving, tls_origin: Origin, certificate: Certificate, data: bytes
) -> None:
    made = setting(certificate, secret("*.test"))
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", tls_origin.port) as stream:
                await stream.send(data)
                await stream.send_eof()
                assert await talk_plain(stream) == bytes.fromhex("15030100020231")
        assert running.proxy.usage().denied == 1
        assert running.proxy.usage().bytes_to_network == 0


async def talk_plain(stream: anyio.abc.ByteReceiveStream) -> bytes:
    got = b""
    try:
        while True:
            got += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return got


async def test_a_host_that_cannot_prove_its_name_gets_nothing(serving: Serving, tls_origin: Origin) -> None:
    made = setting(None)
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(running, made.client, tls_origin.port, get(tls_origin.port))
        assert status(answer) == 502
        assert b"tls_certificate_error" in answer
        nothing_shows_it(running, answer)
    assert not tls_origin.seen


async def test_a_certificate_for_another_name_gets_nothing(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate, secret("third.test"))
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        answer = await ask(
            running, made.client, tls_origin.port, get(tls_origin.port, host="third.test"), host="third.test"
        )
        assert status(answer) == 502
        assert b"tls_certificate_error" in answer
    assert not tls_origin.seen


async def test_a_host_that_does_not_speak_tls_gets_nothing(serving: Serving, certificate: Certificate) -> None:
    made = setting(certificate)
    async with (
        scripted_origin(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as port,
        serving(tls_ports=[port], limits=EgressLimits(handshake_timeout_seconds=0.5), **made.options) as running,
    ):
        answer = await ask(running, made.client, port, get(port))
        assert status(answer) in (502, 504)
        nothing_shows_it(running, answer)


async def test_a_handshake_that_does_not_go_on_is_ended(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    limits = EgressLimits(handshake_timeout_seconds=0.3)
    async with serving(tls_ports=[tls_origin.port], limits=limits, **made.options) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", tls_origin.port) as stream:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                half = made.client.wrap_bio(incoming, outgoing, server_hostname="origin.test")
                with pytest.raises(ssl.SSLWantReadError):
                    half.do_handshake()
                await stream.send(outgoing.read())
                # The server's flight comes, then nothing but the end.
                assert await talk_plain(stream)


async def test_a_program_that_does_not_trust_us_reaches_nobody(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(running, certificate.client, tls_origin.port, get(tls_origin.port))
    assert not tls_origin.seen


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["http/1.1"], ["h2"], []])
async def test_nothing_but_http_1_is_agreed_on(
    serving: Serving, tls_origin: Origin, certificate: Certificate, offered: list[str]
) -> None:
    made = setting(certificate)
    client = made.client
    if offered:
        client.set_alpn_protocols(offered)
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with secured(running, client, tls_origin.port) as secure:
                tls = secure.extra(TLSAttribute.ssl_object)
                assert tls.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)
                assert tls.version() == "TLSv1.3"
                await talk(secure, get(tls_origin.port))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_kept_for_later(
    serving: Serving, tls_origin: Origin, certificate: Certificate, version: Any
) -> None:
    made = setting(certificate)
    client = made.client
    client.minimum_version = client.maximum_version = version
    async with serving(tls_ports=[tls_origin.port], **made.options) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with secured(running, client, tls_origin.port) as secure:
                assert status(await talk(secure, get(tls_origin.port))) == 200
                session = secure.extra(TLSAttribute.ssl_object).session
                assert session is None or not session.has_ticket


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_megabytes_pass_both_ways_unchanged(serving: Serving, certificate: Certificate, version: Any) -> None:
    with http_origin(certificate.server) as tls_origin:
        made = setting(certificate)
        client = made.client
        client.minimum_version = client.maximum_version = version
        body = bytes(range(256)) * 20_000
        async with serving(tls_ports=[tls_origin.port], **made.options) as running:
            head = get(tls_origin.port, "/", f"Content-Length: {len(body)}\r\n")
            answer = await ask(
                running, client, tls_origin.port, head + body, get(tls_origin.port, f"/big?bytes={len(body)}")
            )
        assert tls_origin.seen[0].body_sha256 == hashlib.sha256(body).hexdigest()
        assert answer.endswith(body)


async def test_a_program_that_never_reads_is_ended_as_idle(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    async with serving(
        tls_ports=[tls_origin.port], limits=EgressLimits(idle_timeout_seconds=0.5), **made.options
    ) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with secured(running, made.client, tls_origin.port) as secure:
                await secure.send(get(tls_origin.port, "/big?bytes=100000000"))
                while running.proxy.open_connections:
                    await anyio.lowlevel.checkpoint()
                await anyio.aclose_forcefully(secure)
