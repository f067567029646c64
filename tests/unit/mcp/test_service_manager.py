"""sd_notify(3): one datagram to the address in NOTIFY_SOCKET, and never a failure."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator

import pytest

from sandbox_mcp.service_manager import READY, STOPPING, tell_manager


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """As NOTIFY_SOCKET has it. The path of a socket is short: unix(7)."""
    if request.param == "abstract":
        yield f"@sandbox-test-{secrets.token_hex(8)}"
        return
    with tempfile.TemporaryDirectory(prefix="notify") as directory:
        yield os.path.join(directory, "socket")


def test_what_is_told_arrives(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(30)
        tell_manager(READY, {"NOTIFY_SOCKET": address})
        tell_manager(STOPPING, {"NOTIFY_SOCKET": address})
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_a_manager_that_is_gone_stops_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    tell_manager(READY, {"NOTIFY_SOCKET": address})
    assert "could not be told" in caplog.text


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_where_nobody_waits_nobody_is_told(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    tell_manager(READY, variables)
    assert caplog.text == ""
