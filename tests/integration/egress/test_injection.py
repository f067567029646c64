"""The operator's header in requests: who gets it, who never does, and what hostile code can make of it."""

from __future__ import annotations

import pytest

from tests.integration.egress.conftest import Certificate, Serving
from tests.integration.egress.intercepting import (
    CLOSE,
    SENT,
    VALUE,
    ask,
    get,
    nothing_shows_it,
    secret,
    setting,
    status,
    tls_scripted,
)
from tests.integration.egress.origins import Origin
from tests.integration.egress.test_tunnels import WAYS

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


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
