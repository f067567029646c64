"""h11 takes no longer than what it is sent, and reads what it read before."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import pytest
from h11 import _readers
from h11._abnf import chunk_header, header_field
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from sandbox_adapters.egress import EgressProxy, EgressRules
from sandbox_adapters.h11_bounds import CHUNK_HEADER, HEADER_FIELD, MOST_LINES, bound_h11
from sandbox_adapters.settings import Settings
from sandbox_mcp.listening import uvicorn_config

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BLANKS = b" \t" * 500_000
"""So many that their square is hours."""


@contextmanager
def bounded() -> Iterator[None]:
    """An expression cannot be interrupted but by a signal's handler, which `re` lets run now and then."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(role: type[h11.SERVER] | type[h11.CLIENT], data: bytes) -> None:
    """Read all of `data`, which comes at once."""
    bound_h11()
    wire = h11.Connection(role, max_incomplete_event_size=1 << 15)
    if role is h11.CLIENT:
        wire.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    wire.receive_data(data)
    with bounded():
        while not isinstance(wire.next_event(), h11.EndOfMessage):
            pass


@pytest.mark.parametrize("bad", [b"\x00", b"\r", b"\x0b"])
def test_blanks_in_a_header_field_cost_nothing(bad: bytes) -> None:
    for value in (BLANKS + bad, b"a" + BLANKS + bad, b"a" + BLANKS + b"a" + BLANKS + bad):
        with pytest.raises(h11.RemoteProtocolError):
            read(h11.SERVER, HEAD + b"x:" + value + b"\r\n\r\n")
        with pytest.raises(h11.RemoteProtocolError):
            read(h11.CLIENT, b"HTTP/1.1 200 OK\r\nx:" + value + b"\r\n\r\n")


def test_blanks_in_chunks_and_trailers_cost_nothing() -> None:
    for body in (b"1;" + BLANKS + b"\n\r\n", b"1" + BLANKS + b"x\r\n", b"0\r\nx:" + BLANKS + b"\x00\r\n\r\n"):
        with pytest.raises(h11.RemoteProtocolError):
            read(h11.SERVER, CHUNKED + body)


def test_a_head_of_very_many_fields_is_refused_before_they_are_read() -> None:
    read(h11.SERVER, HEAD + b"a:\r\n" * (MOST_LINES - 1) + b"\r\n")
    for start in (HEAD, CHUNKED + b"0\r\n"):
        # The bad one is the last: nothing has looked at it.
        with pytest.raises(h11.RemoteProtocolError, match="lines of fields"):
            read(h11.SERVER, start + b"a:\r\n" * MOST_LINES + b"\x00\r\n\r\n")


@given(st.text("a: \t\r\n\x00;0x\x0b,\x80", max_size=30).map(lambda text: text.encode("latin-1")))
def test_what_is_read_is_what_h11_reads_by_itself(text: bytes) -> None:
    for line in (text, b"x:" + text):
        ours, theirs = HEADER_FIELD.fullmatch(line), re.fullmatch(header_field.encode(), line)
        assert (ours and ours.groupdict()) == (theirs and theirs.groupdict())
    for line in (text + b"\r\n", b"0" + text + b"\r\n"):
        ours, theirs = CHUNK_HEADER.fullmatch(line), re.fullmatch(chunk_header.encode(), line)
        if b"\r" in line[:-2]:
            assert ours is None
        else:
            assert (ours and ours["chunk_size"]) == (theirs and theirs["chunk_size"])


@pytest.mark.parametrize(
    "make",
    [lambda: EgressProxy(EgressRules()), lambda: uvicorn_config(Starlette(), Settings())],
    ids=["proxy", "server"],
)
def test_the_proxy_and_the_server_have_it(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readers, "header_field_re", None)
    make()
    assert _readers.header_field_re is HEADER_FIELD
