"""The end of listening: who is connected by then is answered, also who waits to be accepted or asked nothing yet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from starlette.responses import PlainTextResponse

from sandbox_adapters.settings import Settings
from sandbox_mcp import listening
from sandbox_mcp.listening import AddressUnavailable, QuietServer, bound_socket, uvicorn_config

REQUEST = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
BOUND_SECONDS = 30

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[QuietServer, int]]:
    with bound_socket("127.0.0.1", 0) as listener:
        web = QuietServer(uvicorn_config(PlainTextResponse("answer"), Settings()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(web.serve, [listener])
            await web.ready.wait()
            yield web, listener.getsockname()[1]
            web.should_exit = True


def connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), BOUND_SECONDS)
    made.settimeout(BOUND_SECONDS)
    return made


async def answer(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""

    def read() -> bytes:
        with connection:
            return b"".join(iter(lambda: connection.recv(4096), b""))

    return await anyio.to_thread.run_sync(read)


@pytest.mark.parametrize("has_asked", [True, False])
async def test_who_waits_to_be_accepted_is_answered(has_asked: bool) -> None:
    made: list[socket.socket] = []
    async with serving() as (web, port):

        def arrive() -> None:
            for _ in range(20):
                made.append(connect(port))
                if has_asked:
                    made[-1].sendall(REQUEST)

        # The loop has looked for connections when this runs, and looks again only after the listener was closed.
        asyncio.get_running_loop().call_soon(arrive)
        await anyio.lowlevel.checkpoint()
        await web.stop_listening()
        if not has_asked:
            for connection in made:
                connection.sendall(REQUEST)
        await web.asked_by_all()
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        for connection in made:
            assert (await answer(connection)).endswith(b"answer")


async def test_who_never_asks_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "FIRST_REQUEST_SECONDS", 0.01)
    async with serving() as (web, port):
        with connect(port), connect(port) as gone:
            gone.close()
            await web.stop_listening()
            with anyio.fail_after(BOUND_SECONDS):
                await web.asked_by_all()


async def test_who_waits_when_no_descriptor_is_left_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (web, port):

        def accept(_: socket.socket) -> tuple[socket.socket, object]:
            raise OSError(24, "Too many open files")

        waiting = connect(port)
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", accept)
            await web.stop_listening()
        with waiting, pytest.raises(ConnectionRefusedError):
            connect(port)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("x" * 64, "it is no host name"),
        ("a..b", "it is no host name"),
        ("192.0.2.1", "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_by_its_settings(host: str, reason: str) -> None:
    with (
        pytest.raises(AddressUnavailable, match=rf"SANDBOX_HOST={host}, SANDBOX_PORT=0: .*{reason}"),
        bound_socket(host, 0),
    ):
        pass
