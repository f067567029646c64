"""More connections that ask nothing than the server may have open: programs still start, and the log stays short."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from tests.integration.mcp.harness import Served, call, connected, eventually, serving

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SECONDS = 120
OPEN_FILES = 200
CONNECTIONS = 400
TOKEN = "t" * 40
LONGEST_LOG_BYTES = 20_000


@contextmanager
def serving_with_few(directory: Path) -> Iterator[Served]:
    """Start a server that inherits a low limit of open files; one that is not root may raise it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, before[1]))
        try:
            served = stack.enter_context(
                serving(directory, SANDBOX_AUTH_TOKEN=TOKEN, SANDBOX_HEADER_TIMEOUT_SECONDS="100")
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        yield served


def open_files(served: Served) -> int:
    return len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))


async def test_a_client_without_a_token_cannot_take_all_descriptors(tmp_path: Path) -> None:
    with serving_with_few(tmp_path) as served, anyio.fail_after(SECONDS):
        async with connected(served.url, token=TOKEN) as client:
            assert (await call(client, "execute_code", command="echo before"))["stdout"] == "before\n"
            with ExitStack() as connections:
                for _ in range(CONNECTIONS):
                    connections.enter_context(socket.create_connection(("127.0.0.1", served.port)))
                eventually(lambda: open_files(served) > OPEN_FILES // 2 - 10, "they are accepted")
                for number in range(5):
                    said = await call(client, "execute_code", command=f"echo {number}", stdin="x")
                    assert said["stdout"] == f"{number}\n"
                async with connected(served.url, token=TOKEN) as newcomer:
                    assert (await call(newcomer, "execute_code", command="echo new"))["stdout"] == "new\n"
                assert open_files(served) < OPEN_FILES * 3 // 4 or open_files(served) > CONNECTIONS
            eventually(lambda: open_files(served) < OPEN_FILES // 2, "they are forgotten")
        async with connected(served.url, token=TOKEN) as client:
            assert (await call(client, "execute_code", command="echo after"))["stdout"] == "after\n"
        log = served.log.read_text()
        assert len(log) < LONGEST_LOG_BYTES
        assert "Traceback" not in log
