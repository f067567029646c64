"""The ClientHello reader, against real hellos, hand-made ones and noise."""

from __future__ import annotations

import ssl
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.egress.errors import Refused
from sandbox_adapters.egress.requests import Destination
from sandbox_adapters.egress.rules import EgressRules
from sandbox_adapters.egress.tls_hello import ClientHello, Incomplete, NotAClientHello, read_client_hello
from sandbox_adapters.egress.tunnel import judge_hello


def real_hello(name: str | None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def name_list(*names: bytes, kind: int = 0) -> bytes:
    return vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, content)


def message(*extensions: bytes, before: bytes | None = None, after: bytes = b"") -> bytes:
    start = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\0")
    body = (start if before is None else before) + vector(2, b"".join(extensions)) + after
    return b"\x01" + vector(3, body)


def records(data: bytes, size: int = 1 << 14) -> bytes:
    return b"".join(b"\x16\x03\x01" + vector(2, data[at : at + size]) for at in range(0, len(data), size))


SNI = extension(0, name_list(b"example.com"))


@pytest.mark.parametrize("name", ["example.com", "a.b.example.org", None])
def test_a_real_hello_is_read(name: str | None) -> None:
    assert read_client_hello(real_hello(name)) == ClientHello(name, ech=False)


def test_what_follows_the_hello_in_later_records_is_left_alone() -> None:
    assert read_client_hello(real_hello("example.com") + b"\x14\x03\x03anything") == ClientHello(
        "example.com", ech=False
    )


def test_every_prefix_asks_for_more_and_never_for_too_much() -> None:
    data = real_hello("example.com")
    for size in range(len(data)):
        answer = read_client_hello(data[:size])
        assert isinstance(answer, Incomplete)
        assert size < answer.size <= len(data)


@given(st.integers(16, 400))
def test_a_hello_in_many_records_is_one_hello(size: int) -> None:
    hello = message(SNI, extension(21, bytes(300)))
    assert read_client_hello(records(hello, size)) == ClientHello("example.com", ech=False)


def test_an_encrypted_hello_is_seen() -> None:
    assert read_client_hello(records(message(SNI, extension(0xFE0D, b"\0" * 20)))) == ClientHello(
        "example.com", ech=True
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1", "not a handshake record"),
        (b"\x80\x2e\x01\x03\x01", "not a handshake record"),
        (b"\x16\x02\x00\x00\x05", "not TLS 1.0"),
        (b"\x16\x03\x01\x00\x00", "impossible length"),
        (b"\x16\x03\x01\x40\x01", "impossible length"),
        (records(b"\x02" + bytes(30)), "not a ClientHello"),
        (records(b"\x01\x01\x00\x00"), "longer than"),
        (records(message(SNI)) [:30] + b"\x15\x03\x01" , None),
        (records(message(SNI), 20)[:25] + b"\x15\x03\x01\x00\x02", "not a handshake record"),
        (records(message(SNI) + b"x"), "something follows"),
        (records(message(SNI), 1), "more than 64 records"),
        (records(message(SNI, SNI)), "twice"),
        (records(message(extension(0, name_list(b"a.com", b"b.com")))), "more than one"),
        (records(message(extension(0, name_list(b"a.com", kind=1)))), "unknown type"),
        (records(message(extension(0, name_list(b"a.com") + b"x"))), "after the server name"),
        (records(message(extension(0, name_list(b"")))), "empty, too long or not ASCII"),
        (records(message(extension(0, name_list(b"a" * 256)))), "empty, too long or not ASCII"),
        (records(message(extension(0, name_list("bücher.com".encode())))), "not ASCII"),
        (records(message(extension(0, b""))), "cut short"),
        (records(message(extension(0, b"\0\0"))), "cut short"),
        (records(message(SNI, after=b"x")), "after the extensions"),
        (records(message(SNI, before=b"\x02\x00" + bytes(40))), "not TLS 1.0"),
        (records(message(SNI, before=b"\x03\x03" + bytes(32) + vector(1, bytes(33)))), "too long"),
        (records(message(SNI, before=b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\1"))), "cipher"),
        (records(b"\x01" + vector(3, b"\x03\x03" + bytes(10))), "cut short"),
    ],
)  # fmt: skip
def test_a_hello_with_two_readings_is_refused(data: bytes, reason: str | None) -> None:
    if reason is None:
        assert isinstance(read_client_hello(data), Incomplete)
        return
    with pytest.raises(NotAClientHello, match=reason):
        read_client_hello(data)


@given(st.binary(max_size=600))
def test_noise_is_refused_or_incomplete(data: bytes) -> None:
    try:
        answer = read_client_hello(b"\x16\x03" + data)
    except NotAClientHello:
        return
    assert isinstance(answer, Incomplete)
    assert answer.size > len(data) + 2


@given(st.data())
def test_a_changed_byte_never_gives_another_name_unseen(data: st.DataObject) -> None:
    """Whatever is changed, the reader answers, and a name that it reports stands in the bytes."""
    hello = bytearray(records(message(extension(10, b"\0\2\0\x1d"), SNI, extension(43, b"\2\3\4"))))
    for _ in range(data.draw(st.integers(1, 4))):
        hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    try:
        answer = read_client_hello(bytes(hello))
    except NotAClientHello:
        return
    if isinstance(answer, ClientHello) and answer.server_name is not None:
        assert answer.server_name.encode() in bytes(hello)


RULES = EgressRules(("example.com", "*.example.com", "192.0.2.7"), ("bad.example.com",))


@pytest.mark.parametrize(
    ("host", "hello", "rule"),
    [
        ("example.com", ClientHello("example.com", ech=False), None),
        ("example.com", ClientHello("EXAMPLE.com.", ech=False), None),
        ("example.com", ClientHello(None, ech=False), "tls_server_name"),
        ("example.com", ClientHello("www.example.com", ech=False), "tls_server_name"),
        ("example.com", ClientHello("evil.org", ech=False), "allowed_domains"),
        ("www.example.com", ClientHello("bad.example.com", ech=False), "denied_domains: bad.example.com"),
        ("example.com", ClientHello("example.com%00.evil.org", ech=False), "tls_server_name"),
        ("example.com", ClientHello("192.0.2.7", ech=False), "tls_server_name"),
        ("example.com", ClientHello("example.com", ech=True), "tls_ech"),
    ],
)
def test_the_server_name_must_be_the_host_asked_for(host: str, hello: ClientHello, rule: str | None) -> None:
    if rule is None:
        judge_hello(hello, Destination(host, 443), RULES)
        return
    with pytest.raises(Refused) as caught:
        judge_hello(hello, Destination(host, 443), RULES)
    assert caught.value.decision.rule == rule


def test_to_an_allowed_address_no_server_name_may_stand() -> None:
    destination = Destination(IPv4Address("192.0.2.7"), 443)
    judge_hello(ClientHello(None, ech=False), destination, RULES)
    with pytest.raises(Refused):
        judge_hello(ClientHello("example.com", ech=False), destination, RULES)


def test_the_operator_can_let_encrypted_hellos_through() -> None:
    rules = EgressRules(("example.com",), allow_ech=True)
    judge_hello(ClientHello("example.com", ech=True), Destination("example.com", 443), rules)
