"""The HTTP surface: tokens, Host and Origin, bodies and headers that are too big or too slow."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.integration.mcp.harness import (
    MODES,
    NO_TLS,
    PATIENCE_SECONDS,
    Served,
    call,
    connected,
    modern_headers,
    modern_request,
    older_session,
    refusal,
    serving,
)

pytestmark = pytest.mark.integration

TOKEN = "correct-horse-battery-staple"
LIST = modern_request("tools/list", {})
HEADERS = modern_headers("tools/list")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    variables = {
        "SANDBOX_AUTH_TOKEN": TOKEN,
        "SANDBOX_MAX_REQUEST_BYTES": "20000",
        "SANDBOX_ALLOWED_HOSTS": "sandbox.example",
        "SANDBOX_ALLOWED_ORIGINS": "https://app.example",
    }
    with serving(tmp_path_factory.mktemp("guarded"), **variables) as served:
        yield served


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that cuts off what is slow: only for requests that never end, as any may be slow on a busy machine."""
    timeouts = {"SANDBOX_HEADER_TIMEOUT_SECONDS": "1", "SANDBOX_BODY_TIMEOUT_SECONDS": "1"}
    with serving(tmp_path_factory.mktemp("impatient"), SANDBOX_AUTH_TOKEN=TOKEN, **timeouts) as served:
        yield served


def post(served: Served, headers: dict[str, str], *, url: str | None = None) -> httpx2.Response:
    return httpx2.post(
        url or served.url, json=LIST, headers={**HEADERS, **headers}, timeout=PATIENCE_SECONDS, verify=NO_TLS
    )


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_right_token_is_let_in(guarded: Served, scheme: str) -> None:
    assert post(guarded, {"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        TOKEN,
        "Bearer",
        f"Bearer  {TOKEN}",
        f"Bearer\t{TOKEN}",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN},",
        f'Bearer "{TOKEN}"',
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Token {TOKEN}",
        "Bearer " + "x" * 8000,
    ],
)
def test_near_misses_are_not(guarded: Served, value: str | None) -> None:
    answer = post(guarded, {} if value is None else {"Authorization": value})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text


def test_token_elsewhere_than_in_the_header_does_not_count(guarded: Served) -> None:
    url = f"{guarded.url}?token={TOKEN}&access_token={TOKEN}"
    assert post(guarded, {"Cookie": f"token={TOKEN}", "X-Api-Key": TOKEN}, url=url).status_code == 401


def test_two_authorization_headers_are_refused(guarded: Served) -> None:
    request = (
        f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        f"Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n{{}}"
    )
    assert exchange(guarded, request.encode()).startswith(b"HTTP/1.1 400 ")


def test_health_is_open_and_tells_no_secrets(guarded: Served) -> None:
    answer = guarded.health()
    said = answer.json()
    assert answer.status_code == 200
    assert set(said) == {"status", "version", "runner", "store", "queue", "running", "queued", "capacity"}
    assert (said["status"], said["runner"], said["store"], said["capacity"]) == ("ok", "bubblewrap", "memory", 10)
    assert said["queue"] == "local"
    assert (
        httpx2.get(
            f"http://127.0.0.1:{guarded.port}/health", headers=bearer("wrong"), timeout=PATIENCE_SECONDS
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("sandbox.example", 200),
        ("sandbox.example:443", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:80.evil.example", 421),
        ("localhost@evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_host_is_checked(guarded: Served, host: str, status: int) -> None:
    assert post(guarded, {**bearer(), "Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example", 200),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("https://evil.example", 403),
        ("https://app.example.evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("https://app.example:444", 403),
        ("null", 403),
        ("file://", 403),
    ],
)
def test_origin_is_checked(guarded: Served, origin: str, status: int) -> None:
    assert post(guarded, {**bearer(), "Origin": origin}).status_code == status


def test_declared_body_over_the_limit_is_refused_unread(guarded: Served) -> None:
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 20001\r\n\r\n"
    assert exchange(guarded, head.encode()).startswith(b"HTTP/1.1 413 ")


def test_chunked_body_over_the_limit_is_refused(guarded: Served) -> None:
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert exchange(guarded, head.encode() + b"1388\r\n" + b"x" * 5000 + b"\r\n", again=4).startswith(b"HTTP/1.1 413 ")


def test_body_with_two_lengths_is_refused(guarded: Served) -> None:
    head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"
    answer = exchange(guarded, head.encode())
    assert answer == b"" or int(answer.split()[1]) >= 400


def test_body_with_two_lengths_ends_the_connection_also_when_all_else_is_right(guarded: Served) -> None:
    body = json.dumps(LIST).encode()
    headers = {**HEADERS, **bearer(), "Host": "localhost", "Content-Length": "5", "Transfer-Encoding": "chunked"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    answer = exchange(guarded, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /mcp HTTP/1.1\r\nHost: local",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    ],
)
def test_slow_headers_are_cut_off(impatient: Served, start: bytes) -> None:
    assert b"HTTP/1.1 408 " in exchange(impatient, start)


def test_slow_body_is_cut_off(impatient: Served) -> None:
    head = f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    assert exchange(impatient, head.encode()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 20000, b'"x"', b"[]", b"\xff\xfe", b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b"}"]
)
def test_malformed_bodies_are_client_errors(guarded: Served, body: bytes) -> None:
    answer = httpx2.post(guarded.url, content=body, headers={**HEADERS, **bearer()}, timeout=PATIENCE_SECONDS)
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.text


def test_other_paths_and_methods_are_refused(guarded: Served) -> None:
    base = f"http://127.0.0.1:{guarded.port}"
    assert httpx2.get(f"{base}/", timeout=PATIENCE_SECONDS).status_code == 404
    assert httpx2.post(f"{base}/health", timeout=PATIENCE_SECONDS).status_code == 405
    assert (
        httpx2.request("PUT", f"{base}/mcp", headers={**HEADERS, **bearer()}, timeout=PATIENCE_SECONDS).status_code
        == 405
    )


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_debugging_log_has_neither_input_nor_output_nor_session(tmp_path: Path, mode: str) -> None:
    secrets = [f"{what}-4711" for what in ("command", "output", "input", "variable", "argument")]
    command, output, given, variable, argument = secrets
    with serving(tmp_path, SANDBOX_LOG_LEVEL="DEBUG") as served:
        async with connected(served.url, mode) as client:
            said = await call(
                client,
                "execute_code_async",
                command=f"cat; echo $A {output.replace('-', '-${Z}')} # {command}",
                environment={"A": variable},
                interactive=True,
            )
            await call(client, "send_stdin", execution_id=said["execution_id"], input_data=given, end=True)
            page = await call(client, "get_execution_output", execution_id=said["execution_id"], wait=True)
            assert output in page["stdout"]
            await refusal(client, "execute_code", command="true", sandbox_config={argument: 1})
        async with httpx2.AsyncClient(timeout=PATIENCE_SECONDS) as http:
            session = (await older_session(http, served.url))["Mcp-Session-Id"]
    log = served.log.read_text()
    assert [secret for secret in (*secrets, session) if secret in log] == []


def test_log_has_no_token(guarded: Served) -> None:
    post(guarded, bearer())
    post(guarded, bearer(f"{TOKEN}x"))
    assert TOKEN not in guarded.log.read_text()


@pytest.mark.anyio
async def test_principals_do_not_see_each_other(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"alice": "token-of-alice", "bob": "token-of-bob"}))
    tokens.chmod(0o600)
    with serving(tmp_path, SANDBOX_AUTH_TOKENS_FILE=str(tokens)) as served:
        async with (
            connected(served.url, token="token-of-alice") as alice,
            connected(served.url, "legacy", token="token-of-bob") as bob,
        ):
            made = await alice.call_tool("execute_code", {"command": "echo secret", "session_id": "shared"})
            assert isinstance(made.structured_content, dict)
            identity = {"execution_id": made.structured_content["execution_id"]}
            for tool, more in [
                ("get_execution_output", {}),
                ("get_execution_status", {}),
                ("cancel_execution", {}),
                ("send_stdin", {"input_data": "x"}),
            ]:
                answer = await bob.call_tool(tool, {**identity, **more})
                assert isinstance(answer.structured_content, dict)
                assert answer.structured_content["error"]["code"] == "execution_not_found"
            listed = await bob.call_tool("list_executions", {"session_id": "shared"})
            assert isinstance(listed.structured_content, dict)
            assert listed.structured_content["executions"] == []


def exchange(served: Served, data: bytes, *, again: int = 0, seconds: float = PATIENCE_SECONDS) -> bytes:
    """Send bytes (and the last 5007 of them again so many times), return all that comes back until the end."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        try:
            for _ in range(again):
                connection.sendall(data[-5008:])
            while chunk := connection.recv(65536):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


@pytest.mark.anyio
async def test_a_client_that_accepts_no_event_stream_has_a_session_in_json(server: Served) -> None:
    async with httpx2.AsyncClient(timeout=30) as http:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        client = {"name": "curl", "version": "1"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        opened = await http.post(
            server.url, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=headers
        )
        assert opened.status_code == 200, opened.text
        assert opened.json()["result"]["protocolVersion"] == "2025-06-18"
        headers |= {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (await http.post(server.url, json=ready, headers=headers)).status_code == 202
        call = {"name": "execute_code", "arguments": {"command": "sleep 0.2; echo in json"}}
        params = {**call, "_meta": {"progressToken": "p"}}
        for accepted in ("application/json", "application/json, text/event-stream"):
            asked = {"jsonrpc": "2.0", "id": accepted, "method": "tools/call", "params": params}
            said = await http.post(server.url, json=asked, headers={**headers, "Accept": accepted})
            assert said.headers["content-type"] == "application/json"
            assert said.json()["result"]["structuredContent"]["stdout"] == "in json\n"
        ended = await http.delete(server.url, headers=headers)
        assert ended.status_code == 200
