"""TLS that ends in the proxy: for which hosts, what both sides may be, and every way in which it fails."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSAttribute

from sandbox_adapters.egress import EgressLimits
from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, Serving
from tests.integration.egress.intercepting import (
    ask,
    ask_blindly,
    get,
    nothing_shows_it,
    secret,
    secured,
    setting,
    status,
    talk,
    tls_scripted,
)
from tests.integration.egress.origins import Origin, http_origin, scripted_origin
from tests.integration.egress.test_tunnels import hello_for, open_tunnel

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


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


async def speak_plainly(stream: anyio.abc.SocketStream) -> None:
    await stream.receive()
    await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    while True:
        await stream.receive()


async def stay_silent(stream: anyio.abc.SocketStream) -> None:
    while True:
        await stream.receive()


# The client's own handshake with the proxy has to fit into the limit too.
@pytest.mark.parametrize(
    ("speak", "limits", "code"),
    [(speak_plainly, EgressLimits(), 502), (stay_silent, EgressLimits(handshake_timeout_seconds=1.5), 504)],
)
async def test_a_host_that_does_not_speak_tls_gets_nothing(
    serving: Serving,
    certificate: Certificate,
    speak: Callable[[anyio.abc.SocketStream], Awaitable[None]],
    limits: EgressLimits,
    code: int,
) -> None:
    made = setting(certificate)
    async with scripted_origin(speak) as port, serving(tls_ports=[port], limits=limits, **made.options) as running:
        answer = await ask(running, made.client, port, get(port))
        assert status(answer) == code
        nothing_shows_it(running, answer)


async def test_a_handshake_that_does_not_go_on_is_ended(
    serving: Serving, tls_origin: Origin, certificate: Certificate
) -> None:
    made = setting(certificate)
    limits = EgressLimits(handshake_timeout_seconds=1.0)
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
        tls_ports=[tls_origin.port], limits=EgressLimits(idle_timeout_seconds=1.5), **made.options
    ) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with secured(running, made.client, tls_origin.port) as secure:
                await secure.send(get(tls_origin.port, "/big?bytes=100000000"))
                while running.proxy.open_connections:
                    await anyio.lowlevel.checkpoint()
                await anyio.aclose_forcefully(secure)
