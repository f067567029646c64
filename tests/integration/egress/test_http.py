"""Plain HTTP through the proxy, byte by byte."""

from __future__ import annotations

import hashlib

import anyio
import anyio.abc
import pytest

from sandbox_adapters.egress import AddressPolicy
from tests.integration.egress.conftest import BOUND_SECONDS, Serving
from tests.integration.egress.origins import Origin, answering, scripted_origin
from tests.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def get(port: int, host: str = "origin.test", path: str = "/", extra: str = "", version: str = "1.1") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/{version}\r\nHost: {host}:{port}\r\n{extra}\r\n".encode()


async def rest(stream: anyio.abc.ByteReceiveStream) -> bytes:
    """Everything up to the end. A reset raises: what came before it may be lost."""
    got = b""
    try:
        while True:
            got += await stream.receive()
    except anyio.EndOfStream:
        return got


CLOSE = "Connection: close\r\n"


async def test_a_request_reaches_the_origin_without_what_was_for_the_proxy(serving: Serving, origin: Origin) -> None:
    extra = (
        "Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nUpgrade: websocket\r\n"
        "Keep-Alive: 5\r\nX-Mine: dropped\r\nX-Kept: kept\r\nConnection: close, X-Mine\r\n"
    )
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(get(origin.port, "ORIGIN.test.", "/a?b=c", extra))
    assert status(answer) == 200
    assert answer.endswith(b"\r\n\r\nhello")
    assert b"X-End: for the whole way" in answer
    assert b"X-Hop" not in answer
    [seen] = origin.seen
    assert seen.target == "/a?b=c"
    assert sorted(name.lower() for name, _ in seen.fields) == ["connection", "host", "x-kept"]
    assert seen.values("Host") == [f"origin.test:{origin.port}"]


@pytest.mark.parametrize(("target", "seen"), [("", "/"), ("?q", "/?q"), ("/x//y?", "/x//y?")])
async def test_the_target_becomes_a_path(serving: Serving, origin: Origin, target: str, seen: str) -> None:
    async with serving(ports=[origin.port]) as running:
        assert status(await running.talk(get(origin.port, path=target, extra=CLOSE))) == 200
    assert [request.target for request in origin.seen] == [seen]


async def test_every_request_of_a_connection_is_decided_for_itself(serving: Serving, origin: Origin) -> None:
    wanted = [
        get(origin.port), get(origin.port, "denied.test"), get(origin.port, "origin.evil"),
        get(origin.port, "inside.test"), get(origin.port, extra=CLOSE),
    ]  # fmt: skip
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(b"".join(wanted))
        assert running.proxy.usage().connections == 1
        assert running.proxy.usage().denied == 3
        assert running.rules_denied() == ["denied_domains: denied.test", "allowed_domains", "address: private"]
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 403, 403, 403, 200]
    assert len(origin.seen) == 2


async def test_a_refusal_names_the_rule_and_what_to_ask_for(serving: Serving, origin: Origin) -> None:
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(get(origin.port, "evil.example", extra=CLOSE))
        [denial] = running.proxy.denials()
    assert (denial.host, denial.port, denial.rule, denial.count) == ("evil.example", origin.port, "allowed_domains", 1)
    assert denial.at.tzinfo is not None
    assert b"evil.example" in answer
    assert b"Rule: allowed_domains" in answer
    assert b'network.allowed_domains including "evil.example"' in answer
    assert b"Proxy-Status: sandbox; error=http_request_denied" in answer
    assert not origin.seen


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("inside.test", "address: private"), ("metadata.test", "address: cloud metadata"),
        ("nat64.test", "address: NAT64"), ("127.0.0.2", "allowed_domains"), ("0x7f.1", "host_syntax"),
        ("2130706433", "host_syntax"), ("[::ffff:127.0.0.1]", "allowed_domains"), ("[::1%25lo]", "host_syntax"),
        ("localhost", "allowed_domains"), ("origin.test%00.evil", "host_syntax"), ("or%69gin.test", "host_syntax"),
        ("denied.test.", "denied_domains: denied.test"), ("test", "allowed_domains"), ("eviltest", "allowed_domains"),
    ],
)  # fmt: skip
async def test_a_host_that_is_not_allowed_gets_403(serving: Serving, origin: Origin, host: str, rule: str) -> None:
    async with serving(ports=[origin.port]) as running:
        assert status(await running.talk(get(origin.port, host, extra=CLOSE))) == 403
        assert running.rules_denied() == [rule]
        assert running.proxy.usage().dialled == 0


async def test_loopback_is_refused_even_for_an_allowed_name_unless_a_test_opens_it(
    serving: Serving, origin: Origin
) -> None:
    async with serving(ports=[origin.port], addresses=AddressPolicy()) as running:
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 403
        assert status(await running.talk(get(origin.port, "127.0.0.1", extra=CLOSE))) == 403
        assert running.rules_denied() == ["address: loopback", "address: loopback"]


async def test_a_port_that_is_not_allowed_gets_403(serving: Serving, origin: Origin) -> None:
    async with serving(ports=[1]) as running:
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 403
        assert running.rules_denied() == ["ports"]


async def test_plain_http_to_a_tls_port_gets_403(serving: Serving, origin: Origin) -> None:
    async with serving(tls_ports=[origin.port]) as running:
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 403
        assert running.rules_denied() == ["tls_ports"]


@pytest.mark.parametrize("method", [b"TRACE", b"trace", b"TRACK"])
async def test_trace_is_not_passed_on(serving: Serving, origin: Origin, method: bytes) -> None:
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(get(origin.port, extra=CLOSE).replace(b"GET", method))
    assert status(answer) == 405
    assert not origin.seen


async def test_bytes_after_a_refused_request_are_not_taken_for_another(serving: Serving, origin: Origin) -> None:
    hidden = get(origin.port, path="/hidden")
    head = get(origin.port, "denied.test", extra=f"Content-Length: {len(hidden)}\r\n").replace(b"GET", b"POST")
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(head + hidden)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 403
    assert not origin.seen


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_arrives_whole_and_in_order(serving: Serving, origin: Origin, chunked: bool) -> None:
    body = bytes(range(256)) * 3000
    if chunked:
        pieces = [
            f"{len(body[at : at + 7000]):x}\r\n".encode() + body[at : at + 7000] + b"\r\n"
            for at in range(0, len(body), 7000)
        ]
        framing, sent = "Transfer-Encoding: chunked\r\n", [*pieces, b"0\r\nX-Trailer: dropped\r\n\r\n"]
    else:
        framing, sent = f"Content-Length: {len(body)}\r\n", [body]
    head = get(origin.port, extra=framing + CLOSE).replace(b"GET", b"PUT")
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(head, *sent)
        assert running.proxy.usage().bytes_to_network > len(body)
    assert status(answer) == 200
    assert answer.endswith(hashlib.sha256(body).hexdigest().encode())
    assert origin.seen[0].body_bytes == len(body)


async def test_head_and_options_work(serving: Serving, origin: Origin) -> None:
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(get(origin.port).replace(b"GET", b"HEAD") + get(origin.port, extra=CLOSE))
        assert answer.count(b"HTTP/1.1 200") == 2
        assert b"Content-Length: 5" in answer
        assert answer.count(b"hello") == 1
        refused = await running.talk(get(origin.port, "no.example", extra=CLOSE).replace(b"GET", b"HEAD"))
        assert refused.endswith(b"\r\n\r\n")
        assert status(await running.talk(get(origin.port, path="", extra=CLOSE).replace(b"GET", b"OPTIONS"))) == 200
    assert origin.seen[-1].target == "*"


async def test_an_http_1_0_client_without_host_is_served_and_closed(serving: Serving, origin: Origin) -> None:
    async with serving(ports=[origin.port]) as running:
        answer = await running.talk(f"GET http://origin.test:{origin.port}/ HTTP/1.0\r\n\r\n".encode())
    assert status(answer) == 200
    assert answer.endswith(b"hello")


async def test_an_answer_without_a_length_is_passed_on_to_its_end(serving: Serving) -> None:
    async with (
        scripted_origin(answering(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")) as port,
        serving(ports=[port]) as running,
    ):
        answer = await running.talk(get(port, extra=CLOSE))
        old = await running.talk(get(port, version="1.0"))
    assert b"Transfer-Encoding: chunked" in answer
    assert b"until the end\r\n0\r\n\r\n" in answer
    assert old.endswith(b"\r\n\r\nuntil the end")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 40000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)  # fmt: skip
async def test_an_answer_with_two_readings_becomes_502(serving: Serving, data: bytes) -> None:
    async with scripted_origin(answering(data)) as port, serving(ports=[port]) as running:
        answer = await running.talk(get(port, extra=CLOSE))
    assert status(answer) == 502
    assert b"http_protocol_error" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_an_answer_cut_short_is_not_passed_off_as_whole(serving: Serving, data: bytes) -> None:
    async with scripted_origin(answering(data)) as port, serving(ports=[port]) as running:
        answer = await running.talk(get(port))
    assert not answer.endswith(b"0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_early_answer_reaches_a_client_that_still_sends(serving: Serving) -> None:
    async with (
        scripted_origin(answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")) as port,
        serving(ports=[port]) as running,
    ):
        head = get(port, extra="Content-Length: 10000000\r\n").replace(b"GET", b"POST")
        answer = await running.talk(head, b"x" * 1000)
    assert status(answer) == 413
    assert answer.endswith(b"no")


async def test_expect_100_continue_is_answered_by_the_origin(serving: Serving) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        assert b"Expect: 100-continue" in head
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await stream.receive() == b"body"
        await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await stream.receive()

    async with scripted_origin(handle) as port, serving(ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", running.port) as client:
                extra = "Content-Length: 4\r\nExpect: 100-continue\r\n"
                await client.send(get(port, extra=extra).replace(b"GET", b"POST"))
                assert status(await client.receive()) == 100
                await client.send(b"body")
                assert status(await client.receive()) == 204


async def test_an_interim_answer_reaches_only_clients_that_know_them(serving: Serving) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with scripted_origin(answering(data)) as port, serving(ports=[port]) as running:
        new = await running.talk(get(port, extra=CLOSE))
        old = await running.talk(get(port, version="1.0"))
    assert [int(part[:3]) for part in new.split(b"HTTP/1.1 ")[1:]] == [103, 200]
    assert status(old) == 200
    assert b"103" not in old


async def test_a_refusal_reaches_a_client_that_is_still_sending_its_body(serving: Serving) -> None:
    body = 600_000
    async with serving(ports=[80]) as running:
        head = get(80, "denied.test", extra=f"Content-Length: {body}\r\n").replace(b"GET", b"POST")
        with anyio.fail_after(BOUND_SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", running.port) as client:
                await client.send(head)
                await client.send(bytes(body))
                await client.send_eof()
                answer = await rest(client)
    assert status(answer) == 403
    assert answer.endswith(b"can take it out.\n")


async def test_a_host_that_does_not_answer_is_told_from_one_that_is_refused(serving: Serving) -> None:
    port = free_port()
    async with serving(ports=[port]) as running:
        assert b"connection_refused" in await running.talk(get(port, extra=CLOSE))
        assert b"dns_error" in await running.talk(get(port, "nowhere.test", extra=CLOSE))
        assert not running.proxy.denials()


async def test_the_next_address_is_tried_when_one_does_not_answer(serving: Serving, origin: Origin) -> None:
    async with serving(ports=[origin.port]) as running:
        assert status(await running.talk(get(origin.port, "fallback.test", extra=CLOSE))) == 200
        assert status(await running.talk(get(origin.port, "mixed.test", extra=CLOSE))) == 200


async def test_injected_headers_replace_the_clients_own_and_stay_unseen(serving: Serving, origin: Origin) -> None:
    def inject(host: str, port: int) -> dict[str, str]:
        return {"Authorization": "Bearer s3cret"} if (host, port) == ("origin.test", origin.port) else {}

    extra = "authorization: mine\r\nConnection: close, X-Other\r\n"
    async with serving(ports=[origin.port], inject_headers=inject) as running:
        answer = await running.talk(get(origin.port, extra=extra))
        await running.talk(get(origin.port, "other.test", extra=extra))
    assert b"s3cret" not in answer
    assert [seen.values("Authorization") for seen in origin.seen] == [["Bearer s3cret"], ["mine"]]


@pytest.mark.parametrize("fields", [{"X": "a\r\nb"}, {"Host": "x"}, {"Content-Length": "1"}, {"X y": "1"}, {"é": "1"}])
async def test_a_bad_injected_header_ends_the_request_without_showing_it(
    serving: Serving, origin: Origin, fields: dict[str, str]
) -> None:
    async with serving(ports=[origin.port], inject_headers=lambda host, port: fields) as running:
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 502
    assert not origin.seen
