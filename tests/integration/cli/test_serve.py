"""`sandbox serve` as a process: its log, its address, how it stops, how it refuses to start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess  # noqa: TID251  # the command line is a program
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.cli.conftest import WAIT_SECONDS, line_from

Cli = Callable[..., subprocess.CompletedProcess[bytes]]
Start = Callable[..., AbstractContextManager[subprocess.Popen[bytes]]]

pytestmark = pytest.mark.integration

TOKEN = "tok-0123456789abcdef"
INITIALISED = "First-time initialization: ExecutionManager initialised"


def events_until(process: subprocess.Popen[bytes], event: str) -> list[dict[str, Any]]:
    """Return the log lines on stderr up to the one that says `event`, in bounded time."""
    lines: list[dict[str, Any]] = []
    while True:
        line = line_from(process.stderr)
        assert line, lines
        lines.append(json.loads(line))
        if lines[-1]["event"] == event:
            return lines


def file_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_serves_logs_once_that_the_manager_is_there_and_stops_on_sigterm(started: Start, tmp_path: Path) -> None:
    with started("serve", "--port", "0", SANDBOX_AUTH_TOKEN=TOKEN) as process:
        lines = events_until(process, "Listening")
        assert any("--transport stdio" in line["event"] for line in lines)  # for a host that waits on these pipes
        url = lines[-1]["url"]
        base = url.rsplit("/", 1)[0]
        for given in (TOKEN, "wrong-" + TOKEN):
            httpx.post(
                f"{url}?token={given}", headers={"Authorization": f"Bearer {given}"}, json={}, timeout=WAIT_SECONDS
            )
        health = httpx.get(f"{base}/health", timeout=WAIT_SECONDS).json()
        assert (health["status"], health["runner"], health["store"]) == ("ok", "bubblewrap", "memory")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    log = tmp_path / "sandbox_server.log"
    assert [line["event"] for line in file_events(log)].count(INITIALISED) == 1
    (line,) = [line for line in file_events(log) if line["event"] == INITIALISED]
    assert (line["runner"], line["store"], line["capacity"], line["isolated"]) == ("bubblewrap", "memory", 10, True)
    assert TOKEN not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_local_runner_is_logged_as_no_isolation(started: Start) -> None:
    with started("serve", "--port", "0", "--runner", "local", "--log-file", "") as process:
        lines = events_until(process, "Listening")
        (line,) = [line for line in lines if line["event"] == INITIALISED]
        assert (line["runner"], line["isolated"]) == ("local", False)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0


def test_flags_win_over_the_environment(started: Start) -> None:
    with started(
        "serve", "--port", "0", "--max-concurrent", "4", SANDBOX_PORT="1", SANDBOX_MAX_CONCURRENT="7"
    ) as process:
        lines = events_until(process, "Listening")
        assert [line["capacity"] for line in lines if line["event"] == INITIALISED] == [4]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0


def test_on_stdio_only_protocol_goes_to_standard_output_and_no_file_is_left(cli: Cli, tmp_path: Path) -> None:
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    done = cli("serve", "--transport", "stdio", stdin=json.dumps(hello).encode() + b"\n")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["id"] == 1
    assert b"ExecutionManager initialised" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_runner_that_works_it_does_not_start(cli: Cli) -> None:
    done = cli("serve", "--port", "0", SANDBOX_BWRAP_PATH="/no/such/bwrap")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"bubblewrap runner cannot work here" in done.stderr
    assert b"SANDBOX_RUNNER=local" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_address_that_is_taken_is_one_clear_line(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1  # what a service manager tries again
    assert b"Traceback" not in done.stderr
    assert b"cannot be bound: Address already in use" in done.stderr


def test_a_default_log_file_that_cannot_be_written_does_not_stop_it(started: Start, tmp_path: Path) -> None:
    (tmp_path / "sandbox_server.log").mkdir()
    with started("serve", "--port", "0") as process:
        lines = events_until(process, "Listening")
        assert "Logging to stderr only" in [line["event"] for line in lines]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
