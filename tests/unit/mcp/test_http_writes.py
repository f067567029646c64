"""OnePieceTransport on a transport that records what is written to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.seen.append(bytes(data))

    def close(self) -> None:
        self.seen.append(b"closed")

    def abort(self) -> None:
        self.seen.append(b"aborted")

    def get_write_buffer_size(self) -> int:
        return 0


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
