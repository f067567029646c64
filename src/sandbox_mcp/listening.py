"""Listening: the socket of an HTTP server, and uvicorn as we want it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import anyio
import anyio.lowlevel
import uvicorn
from starlette.types import ASGIApp

from sandbox_adapters.h11_bounds import bound_h11
from sandbox_adapters.settings import Settings, variable_name
from sandbox_core.domain.errors import InfrastructureError
from sandbox_mcp.connection_room import bounded_protocol, tell_seldom_what_is_not_accepted
from sandbox_mcp.http_protocol import TimedH11Protocol

CLOSE_SECONDS: Final = 2
"""How long connections get to close by themselves."""

FIRST_REQUEST_SECONDS: Final = 1
"""How long a connection that was just made gets to ask something, before the server closes it."""

KEEP_ALIVE_SECONDS: Final = 30
BACKLOG: Final = 2048
ACCEPTED_AT_ONCE: Final = 100
"""In one turn of the event loop. Where descriptors are used up, asyncio tries as often before it looks elsewhere."""


class AddressUnavailable(InfrastructureError):
    """Nothing can listen there now: in use, or no address of this machine yet. Starting again later may help."""

    code: ClassVar[str] = "address_unavailable"


@contextmanager
def bound_socket(host: str, port: int, *, fields: tuple[str, str] = ("host", "port")) -> Iterator[socket.socket]:
    """Bind before anything is started, so that a busy port costs one clear line, which names the settings `fields`.

    Raises AddressUnavailable.
    """
    where = ", ".join(f"{variable_name(name)}={value}" for name, value in zip(fields, (host, port), strict=True))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressUnavailable(f"{where}: cannot be used: {error.strerror or error}") from None
    except UnicodeError:
        raise AddressUnavailable(f"{where}: cannot be used: it is no host name") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise AddressUnavailable(f"{where}: cannot be bound: {error.strerror or error}") from None
        listener.setblocking(False)
        yield listener


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves an application."""
    bound_h11()
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.header_timeout_seconds),
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


class QuietServer(uvicorn.Server):
    """uvicorn without signal handlers of its own; `ready` is set once it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self._listeners: list[socket.socket] = []

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs us."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start on `sockets`, and say so."""
        tell_seldom_what_is_not_accepted(asyncio.get_running_loop())
        await super().startup(sockets)
        self._listeners = sockets or []
        for listener in self._listeners:
            listener.listen(BACKLOG)  # asyncio listened anew, for as many as it accepts at once
        self.ready.set()

    async def stop_listening(self) -> None:
        """Refuse connections from now on, so that a balancer goes elsewhere; those that there are go on.

        Those that wait to be accepted are accepted first, in the same step: closing would reset them, and a balancer
        that has sent its request sends it nowhere else.
        """
        waiting = [connection for listener in self._listeners for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()
        for connection in waiting:
            try:
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
            except OSError:
                connection.close()

    async def asked_by_all(self) -> None:
        """Return when every open connection has brought its first request, a second at most."""
        with anyio.move_on_after(FIRST_REQUEST_SECONDS):
            for connection in list(self.server_state.connections):
                if isinstance(connection, TimedH11Protocol):
                    await connection.asked.wait()
            # Once round the loop: what came last is a task that has not begun.
            await anyio.lowlevel.checkpoint()

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn's own
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError:
            # None waits any more, or there is no descriptor left for one.
            return
        connection.setblocking(False)
        yield connection


def shown(host: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
