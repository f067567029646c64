"""Attacks on the HTTP server that tests/integration/mcp does not try; docs/attacks.md lists those that it does.

Each is shown beside the same request without its trick, which is served.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.integration.mcp.harness import NO_TLS, Served, modern_headers, modern_request, serving

pytestmark = pytest.mark.integration

TOKEN = "correct-horse-battery-staple"
BODY = json.dumps(modern_request("tools/list", {})).encode()
_SECONDS = 60


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("guarded"), SANDBOX_AUTH_TOKEN=TOKEN, SANDBOX_BODY_TIMEOUT_SECONDS="2"
    ) as served:
        yield served


def request(*more: str, without: str = "", line: str = "POST /mcp HTTP/1.1", body: bytes = BODY) -> bytes:
    """Return a request that is served, with further header lines as they are and without one of its own."""
    headers = {**modern_headers("tools/list"), "Authorization": f"Bearer {TOKEN}", "Host": "localhost"}
    headers["Content-Length"] = str(len(body))
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if name != without), *more, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def exchange(served: Served, data: bytes) -> bytes:
    """Send bytes and return all that comes back until the server ends the connection, which it must."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=_SECONDS) as connection:
        received = b""
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def statuses(answer: bytes) -> list[int]:
    return [int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_the_same_request_without_a_trick_is_served(guarded: Served) -> None:
    assert statuses(exchange(guarded, request("Connection: close"))) == [200]


@pytest.mark.parametrize(
    "data",
    [
        request("Content-Length: 5"),
        request(f"Content-Length: {len(BODY)}, 5"),
        request("Content-Length: +5", without="Content-Length"),
        request("Content-Length: -1", without="Content-Length"),
        request("Content-Length: 0x10", without="Content-Length"),
        request("Transfer-Encoding: chunked"),
        request("Transfer-Encoding: xchunked", without="Content-Length"),
        request("Transfer-Encoding: chunked, identity", without="Content-Length"),
        request("Transfer-Encoding: gzip, chunked", without="Content-Length"),
        request("Transfer-Encoding:\x0bchunked", without="Content-Length"),
        request("Transfer-Encoding : chunked", without="Content-Length"),
        request("X: a", " Transfer-Encoding: chunked", without="Authorization"),
        request("X: a\nTransfer-Encoding: chunked", without="Authorization"),
        request("X: a\0b"),
        request("X y: a"),
        request("Host: evil.example"),
        request("Host: localhost"),
        request(without="Host"),
        request("Host: evil.example", without="Host", line="POST http://localhost/mcp HTTP/1.1"),
        request(line="POST /mcp"),
        request(line="POST  /mcp HTTP/1.1 HTTP/1.1"),
    ],
)
def test_a_request_with_two_readings_is_refused_and_its_connection_ended(guarded: Served, data: bytes) -> None:
    behind = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = exchange(guarded, data + behind)
    assert all(400 <= status < 500 for status in statuses(answer)), answer[:500]
    assert len(statuses(answer)) == 1, answer[:2000]


def test_what_follows_a_refused_request_is_not_served_with_its_rights(guarded: Served) -> None:
    refused = request(without="Authorization")
    answer = exchange(guarded, refused + request("Connection: close", without="Authorization"))
    assert set(statuses(answer)) == {401}


@pytest.mark.parametrize("target", ["/mcp/../mcp", "/%6dcp", "//mcp", "/mcp/", "/mcp;x", "/MCP", "/mcp%00", "/mcp\\"])
def test_other_spellings_of_the_path_never_skip_the_token(guarded: Served, target: str) -> None:
    answer = exchange(guarded, request("Connection: close", without="Authorization", line=f"POST {target} HTTP/1.1"))
    assert all(400 <= status < 500 or status == 307 for status in statuses(answer)), answer


def _call(served: Served, arguments: dict[str, Any], tool: str = "execute_code") -> httpx2.Response:
    body = modern_request("tools/call", {"name": tool, "arguments": arguments})
    headers = {**modern_headers("tools/call", tool), "Authorization": f"Bearer {TOKEN}"}
    return httpx2.post(served.url, json=body, headers=headers, timeout=_SECONDS, verify=NO_TLS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"command": "x" * 2_000_000},
        {"command": ["a"] * 100_000},
        {"command": "true", "env": {f"V{n}": "x" for n in range(20_000)}},
        {"command": "true", "env": {"A\nB": "x"}},
        {"command": "true", "env": {"A=B": "x"}},
        {"command": "true\0false"},
        {"command": "true", "session_id": "../../etc/passwd\r\nX: y"},
        {"command": "true", "session_id": "x" * 100_000},
        {"command": "true", "working_directory": "/workspace\0/etc"},
        {"command": "true", "timeout": 10**400},
        {"command": "true", "timeout": -1},
        {"command": {"a": {"b": 1}}},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_hostile_arguments_are_refused_without_telling_about_the_server(
    guarded: Served, arguments: dict[str, Any]
) -> None:
    answer = _call(guarded, arguments)
    assert answer.status_code < 500
    said = answer.text[:200_000]
    if answer.status_code == 200:
        result = json.loads(said)
        assert "error" in result or result["result"].get("isError") is True, said[:1000]
    for telling in ("Traceback", 'File "', "site-packages", "sandbox-runner-", "sandbox_adapters", TOKEN):
        assert telling not in said, said[:1000]


def test_nothing_sent_can_add_a_line_to_the_log(guarded: Served) -> None:
    forged = '{"event": "forged", "level": "critical"}'
    trick = f"x\r\n{forged}\n\x1b[2J"
    _call(guarded, {"command": f"echo {trick}"})
    _call(guarded, {"command": "true", "session_id": trick})
    _call(guarded, {"execution_id": trick}, "get_execution_status")
    exchange(
        guarded,
        request(
            "Connection: close", f"X-Request-Id: {trick!r}", line=f"POST /mcp?{forged.replace(' ', '%20')} HTTP/1.1"
        ),
    )
    log = guarded.log.read_text(errors="replace")
    assert "\x1b" not in log
    assert not any(line.lstrip().startswith(forged) for line in log.splitlines())


def test_the_server_still_serves(guarded: Served) -> None:
    assert guarded.process.poll() is None
    assert _call(guarded, {"command": "echo well"}).status_code == 200
