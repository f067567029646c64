"""Listening: the socket of an HTTP server, and uvicorn as we want it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import anyio.lowlevel
import uvicorn
from starlette.types import ASGIApp

from sandbox_adapters.settings import Settings, SettingsError, variable_name
from sandbox_mcp.http_protocol import timed_protocol

CLOSE_SECONDS: Final = 2
"""How long connections get to close by themselves."""

KEEP_ALIVE_SECONDS: Final = 30
BACKLOG: Final = 2048


@contextmanager
def bound_socket(host: str, port: int, *, fields: tuple[str, str] = ("host", "port")) -> Iterator[socket.socket]:
    """Bind before anything is started, so that a busy port costs one clear line, which names the settings `fields`.

    Raises SettingsError.
    """
    where = ", ".join(f"{variable_name(name)}={value}" for name, value in zip(fields, (host, port), strict=True))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"{where}: cannot be used: {error.strerror or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise SettingsError(f"{where}: cannot be bound: {error.strerror or error}") from None
        listener.setblocking(False)
        yield listener


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves an application."""
    return uvicorn.Config(
        app,
        http=timed_protocol(settings.header_timeout_seconds),
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


class QuietServer(uvicorn.Server):
    """uvicorn without signal handlers of its own; `ready` is set once it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs us."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.ready.set()

    async def stop_listening(self) -> None:
        """Refuse connections from now on, so that a balancer goes elsewhere; those that there are go on."""
        # Once round the loop, so that connections which wait to be accepted are accepted and not reset.
        await anyio.lowlevel.checkpoint()
        for server in self.servers:
            server.close()


def shown(host: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
