"""OnePieceTransport on a transport that records what is written to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from sandbox_mcp.http_writes import OnePieceTransport

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
BIG = b"x" * (64 * 1024 + 1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Recorder(asyncio.Transport):
    """Keeps every write; closing and aborting are kept as words between them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.unsent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.seen.append(bytes(data))

    def close(self) -> None:
        self.seen.append(b"closed")

    def abort(self) -> None:
        self.seen.append(b"aborted")

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Later:
    """An event loop of which only what is to be called later is used, when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def call_later(self, _: float, callback: Callable[[int], object], taken: int) -> None:
        self.calls.append(lambda: callback(taken))

    def pass_time(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def over(self, recorder: Recorder) -> OnePieceTransport:
        return OnePieceTransport(recorder, cast("asyncio.AbstractEventLoop", self))


async def _turn() -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


def _write(*pieces: bytes) -> Callable[[OnePieceTransport], None]:
    def write(transport: OnePieceTransport) -> None:
        for piece in pieces:
            transport.write(piece)

    return write


def _write_and(last: Callable[[OnePieceTransport], None]) -> Callable[[OnePieceTransport], None]:
    def write(transport: OnePieceTransport) -> None:
        transport.write(HEAD)
        last(transport)

    return write


@pytest.mark.parametrize(
    ("act", "at_once", "in_the_end"),
    [
        pytest.param(_write(HEAD, b"{}"), [HEAD + b"{}"], [HEAD + b"{}"], id="body"),
        pytest.param(_write(HEAD), [], [HEAD], id="head alone"),
        pytest.param(_write(HEAD, BIG), [HEAD, BIG], [HEAD, BIG], id="long body"),
        pytest.param(_write(HEAD, b"{", b"}"), [HEAD + b"{", b"}"], [HEAD + b"{", b"}"], id="body in pieces"),
        pytest.param(_write(HEAD, b""), [HEAD], [HEAD], id="empty body"),
        pytest.param(_write(b"{}"), [b"{}"], [b"{}"], id="piece of a body"),
        pytest.param(_write(HEAD, HEAD), [HEAD + HEAD], [HEAD + HEAD], id="two heads"),
        pytest.param(
            _write_and(OnePieceTransport.close), [HEAD, b"closed"], [HEAD, b"closed"], id="head before closing"
        ),
        pytest.param(_write_and(OnePieceTransport.abort), [b"aborted"], [b"aborted"], id="head before aborting"),
    ],
)
async def test_what_is_written_in_one_turn_and_after_it(
    act: Callable[[OnePieceTransport], None], at_once: list[bytes], in_the_end: list[bytes]
) -> None:
    recorder = Recorder()
    act(OnePieceTransport(recorder, asyncio.get_running_loop()))
    assert recorder.seen == at_once
    await _turn()
    assert recorder.seen == in_the_end


async def test_what_waits_counts_as_unsent() -> None:
    transport = OnePieceTransport(Recorder(), asyncio.get_running_loop())
    transport.write(HEAD)
    assert transport.get_write_buffer_size() == len(HEAD)
    await _turn()
    assert transport.get_write_buffer_size() == 0


def test_a_client_that_takes_nothing_of_what_waits_is_cut_off_also_after_the_end() -> None:
    later, recorder = Later(), Recorder()
    transport = later.over(recorder)
    recorder.unsent = 100
    transport.write(BIG)
    recorder.unsent += len(BIG)
    transport.write(BIG)
    transport.close()
    assert recorder.seen == [BIG, BIG, b"closed"]
    later.pass_time()
    assert recorder.seen == [BIG, BIG, b"closed", b"aborted"]
    assert later.calls == []


def test_a_client_that_takes_a_little_is_not_cut_off() -> None:
    later, recorder = Later(), Recorder()
    transport = later.over(recorder)
    recorder.unsent = len(BIG)
    transport.write(BIG)
    for unsent in (len(BIG) - 1, 10):
        recorder.unsent = unsent
        later.pass_time()
    recorder.unsent = len(BIG)
    transport.write(BIG)
    later.pass_time()
    recorder.unsent = 0
    later.pass_time()
    assert recorder.seen == [BIG, BIG]
    assert later.calls == []


def test_a_client_that_reads_is_not_watched() -> None:
    later = Later()
    later.over(Recorder()).write(BIG)
    assert later.calls == []
