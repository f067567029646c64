"""Requests that two readers could understand differently: 400, and nothing reaches anybody."""

from __future__ import annotations

import anyio
import pytest

from tests.integration.egress.conftest import BOUND_SECONDS, Serving
from tests.integration.egress.origins import Origin
from tests.integration.egress.test_http import status
from tests.integration.egress.test_tunnels import rest

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

URL = "http://origin.test:{port}/"
HOST = "Host: origin.test:{port}"
TARGETS = [
    "http://user@origin.test:{port}/", "http://user:word@origin.test:{port}/", "http://origin.test:{port}@evil.test/",
    "http://evil.test\\@origin.test:{port}/", "http://origin.test:{port}\\.evil.test/", "http://origin.test:{port}/a\\b",
    "http://origin.test:{port}#@evil.test/", "http://origin.test:{port}/#x", "http://origin.test:/",
    "http://origin.test:{port}x/", "http://origin.test:+{port}/", "http://origin.test:{port}:{port}/",
    "http://origin.test:99999/", "http://origin.test:0/", "http:/origin.test:{port}/", "http:origin.test:{port}",
    "http:///origin.test:{port}/", "//origin.test:{port}/", "https://origin.test:{port}/", "ftp://origin.test:{port}/",
    "file:///etc/passwd", "/", "*", "origin.test:{port}", "http://origin.test:{port}/ a", "http://origin.test:{port}/\0",
    "http://origin.test:{port}/é", "http://origin.test:{port}/" + "a" * 40000,
]  # fmt: skip
HEADS = [
    (f"GET {URL} HTTP/1.1", "Host: other.test:{port}"),
    (f"GET {URL} HTTP/1.1", "Host: origin.test"),
    (f"GET {URL} HTTP/1.1", HOST, HOST),
    (f"GET {URL} HTTP/1.1", HOST, "Host: evil.test"),
    (f"GET {URL} HTTP/1.1", "Host:"),
    (f"GET {URL} HTTP/1.1", "Host: user@origin.test:{port}"),
    (f"GET {URL} HTTP/1.1", "Host: origin.test:{port}, evil.test"),
    (f"GET {URL} HTTP/1.1",),
    (f"GET {URL} HTTP/1.1", "Host : origin.test:{port}"),
    (f"GET {URL} HTTP/1.1", HOST, "X: a\0b"),
    (f"GET {URL} HTTP/1.1", HOST, "X: a\rb"),
    (f"GET {URL} HTTP/1.1", HOST, "X y: a"),
    (f"GET {URL} HTTP/2.0", HOST),
    (f"GET {URL} HTTP/0.9", HOST),
    (f"GET {URL}", HOST),
    (f"{'G' * 33} {URL} HTTP/1.1", HOST),
    (f"GET {URL} HTTP/1.1", HOST, "Connection: Host"),
    (f"GET {URL} HTTP/1.1", HOST, "X: " + "a" * 40000),
    (f"GET {URL} HTTP/1.1", HOST, *["X: a"] * 200),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: 5", "Transfer-Encoding: chunked"),
    (f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Content-Length: 5"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: 5", "Content-Length: 6"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: 5, 6"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: +5"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: -1"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: 0x5"),
    (f"POST {URL} HTTP/1.1", HOST, "Content-Length: 5", "Connection: content-length"),
    (f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"),
    (f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding: xchunked"),
    (f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    (f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding:\x0bchunked"),
    (f"POST {URL} HTTP/1.0", HOST, "Transfer-Encoding: chunked"),
    ("CONNECT origin.test HTTP/1.1", "Host: origin.test"),
    ("CONNECT http://origin.test:{port} HTTP/1.1", HOST),
    ("CONNECT user@origin.test:{port} HTTP/1.1", HOST),
    ("CONNECT origin.test:{port}/ HTTP/1.1", HOST),
    ("CONNECT origin.test:{port} HTTP/1.1", "Host: other.test:{port}"),
    ("CONNECT origin.test:{port} HTTP/1.1", "Host: origin.test:1"),
    ("CONNECT origin.test:{port} HTTP/1.1", HOST, "Content-Length: 5"),
    ("CONNECT origin.test:{port} HTTP/1.1", HOST, "Transfer-Encoding: chunked"),
]


async def refused(serving: Serving, origin: Origin, lines: tuple[str, ...]) -> None:
    text = "\r\n".join(lines).replace("{port}", str(origin.port)) + "\r\n\r\n0\r\n\r\n"
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(text.encode())
        assert status(answer) == 400
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answer
        assert running.proxy.usage().dialled == 0
    assert not origin.seen


@pytest.mark.parametrize("target", TARGETS)
async def test_a_target_with_two_readings_is_refused(serving: Serving, origin: Origin, target: str) -> None:
    await refused(serving, origin, (f"GET {target} HTTP/1.1", HOST, "Content-Length: 5"))


@pytest.mark.parametrize("lines", HEADS)
async def test_a_head_with_two_readings_is_refused(serving: Serving, origin: Origin, lines: tuple[str, ...]) -> None:
    await refused(serving, origin, lines)


@pytest.mark.parametrize(
    "body", ["5\r\nhello", "x\r\nhello", "-1\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "fffffffffffffffffffffff\r\n"]
)
async def test_a_body_that_breaks_off_or_is_malformed_never_looks_whole(
    serving: Serving, origin: Origin, body: str
) -> None:
    head = "\r\n".join((f"POST {URL} HTTP/1.1", HOST, "Transfer-Encoding: chunked", "", ""))
    async with serving(ports=[origin.port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", running.port) as client:
                await client.send((head + body).replace("{port}", str(origin.port)).encode())
                await client.send_eof()
                answer = await rest(client)
    assert status(answer) == 400
    assert not origin.seen
