"""Servers on loopback that stand for the internet."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc

PIECE = bytes(range(256)) * 256


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the origin got it."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body_bytes: int
    body_sha256: str

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]


@dataclass
class Origin:
    """A running HTTP server; every path answers `hello` but `/big?bytes=N`, and a body is answered by its digest."""

    port: int
    seen: list[Seen] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, *args: Any) -> None:
        pass

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left and (piece := self.rfile.read(min(left, 65536))):
            left -= len(piece)
            yield piece

    def _answer(self) -> None:
        digest, size = hashlib.sha256(), 0
        for piece in self._body():
            digest.update(piece)
            size += len(piece)
        fields = [(name, value) for name, value in self.headers.items()]
        self.origin.seen.append(Seen(self.command, self.path, fields, size, digest.hexdigest()))
        asked = parse_qs(urlsplit(self.path).query)
        count = int(asked["bytes"][0]) if "bytes" in asked else None
        answer = digest.hexdigest().encode() if size else b"hello"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer) if count is None else count))
        self.send_header("Connection", "keep-alive, X-Hop")
        self.send_header("X-Hop", "for one connection")
        self.send_header("X-End", "for the whole way")
        self.end_headers()
        if self.command == "HEAD":
            return
        if count is None:
            self.wfile.write(answer)
            return
        while count:
            count -= self.wfile.write(PIECE[:count])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def http_origin(tls: ssl.SSLContext | None = None) -> Iterator[Origin]:
    """Run an HTTP server, with TLS when a context is given."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    origin = Origin(server.server_address[1])
    handler.origin = origin  # type: ignore[attr-defined]  # a class made here
    with _running(server):
        yield origin


@contextmanager
def file_origin(
    directory: Path, tls: ssl.SSLContext | None = None, *, authorization: str | None = None
) -> Iterator[int]:
    """Serve the files of `directory`, to whoever sends `authorization` when it is given; yields the port."""

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(directory), **kwargs)

        def do_GET(self) -> None:
            if authorization is not None and self.headers.get("Authorization") != authorization:
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Files)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with _running(server):
        yield server.server_address[1]


@asynccontextmanager
async def scripted_origin(handle: Callable[[anyio.abc.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """Run `handle` for every connection; yields the port. What breaks off is part of the tests."""

    async def guarded(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await handle(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, guarded)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


def answering(data: bytes) -> Callable[[anyio.abc.SocketStream], Awaitable[None]]:
    """Return a handler that reads a request head, sends `data` and closes."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        await stream.send(data)
        await stream.send_eof()
        while True:
            await stream.receive()

    return handle
