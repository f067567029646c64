"""The two ways to serve: HTTP and stdio. Start, stop on a signal, leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import uvicorn
from anyio.abc import TaskGroup, TaskStatus
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.logging import get_logger
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings, SettingsError, check_exposure, variable_name
from sandbox_mcp.http_app import MCP_PATH, SandboxHttpApp
from sandbox_mcp.http_names import allowed_names
from sandbox_mcp.http_protocol import timed_protocol
from sandbox_mcp.server import SandboxServer
from sandbox_mcp.stdio_transport import stdio_transport

ANSWER_SECONDS = 3.0
"""How long a shutdown waits for answers to be read, once every execution has ended."""

LINGER_SECONDS = 0.5
"""How long after the last answer others are still given: SDK clients list the tools to check their first result."""

CLOSE_SECONDS = 2
"""How long connections get to close by themselves."""

STDIO_ANSWER_SECONDS = 0.5
"""How long a drained stdio server goes on writing answers; its client reads them at once."""

MAX_SESSIONS = 10_000
SESSION_IDLE_SECONDS = 1800.0
KEEP_ALIVE_SECONDS = 30
BACKLOG = 2048

_log = get_logger(__name__)


class Stop:
    """Whether, and how urgently, to stop."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.hurried = anyio.Event()
        self.starting = anyio.CancelScope()
        self.started = False

    def ask(self) -> None:
        """Ask to stop; asked again, hurry. Before the start is over: give it up."""
        if not self.started:
            self.starting.cancel()
        elif self.asked.is_set():
            self.hurried.set()
        self.asked.set()


def serve_http(settings: Settings) -> None:
    """Run `run_http` in an event loop of its own."""
    anyio.run(run_http, settings)


def serve_stdio(settings: Settings) -> None:
    """Run `run_stdio` in an event loop of its own."""
    anyio.run(run_stdio, settings)


async def run_http(settings: Settings, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve Streamable HTTP at `/mcp` until SIGTERM or SIGINT; reports the bound port when it is listening.

    On the first signal nothing new is admitted, and where other replicas answer too no connection is accepted any more.
    Running executions get `drain_grace_seconds`, then they are ended and marked; the second signal ends the grace.
    Returns when no process is left.

    Raises SettingsError (bad settings, an address that cannot be bound) and RunnerUnavailable, before anything is
    served.
    """
    check_exposure(settings)
    names = allowed_names(settings)
    tokens = load_auth_tokens(settings)
    with _bound_socket(settings) as listener, _stop_on_signals() as stop:
        async with open_sandbox(settings) as sandbox, _sessions(sandbox, settings) as manager:
            stop.started = True
            app = SandboxHttpApp(sandbox, manager, settings, names=names, tokens=tokens)
            web = _QuietServer(_uvicorn_config(app, settings))
            async with anyio.create_task_group() as tasks:
                async with manager.run():
                    tasks.start_soon(web.serve, [listener])
                    await web.ready.wait()
                    port = int(listener.getsockname()[1])
                    _log.info("Listening", url=f"http://{_shown(settings.host)}:{port}{MCP_PATH}", auth=bool(tokens))
                    _settle_memory()
                    task_status.started(port)
                    await stop.asked.wait()
                    was_busy = sandbox.supervisor.running > 0
                    if settings.shares_state:
                        app.moving_away = True
                        await web.stop_listening()
                    await _drain(sandbox, stop, settings.drain_grace_seconds)
                    sandbox.service.end_waits()
                    with anyio.move_on_after(ANSWER_SECONDS):
                        await app.in_flight.wait_idle()
                        if was_busy:
                            await anyio.sleep(LINGER_SECONDS)
                            await app.in_flight.wait_idle()
                    app.closing = True
                # Leaving the manager ended the older clients' open streams, which would have held uvicorn up.
                web.should_exit = True
    _log.info("Stopped")


async def run_stdio(settings: Settings) -> None:
    """Serve one client on standard input and output until end of input, SIGTERM or SIGINT.

    At end of input, calls that are being answered get `drain_grace_seconds`; on a signal every running execution does.
    Raises SettingsError, and RunnerUnavailable.
    """
    with _stop_on_signals() as stop:
        async with open_sandbox(settings) as sandbox:
            stop.started = True
            server = _server_for(sandbox, settings).mcp
            connection = stdio_transport(
                max_line_bytes=settings.max_request_bytes, answer_seconds=settings.drain_grace_seconds
            )
            async with connection as (incoming, outgoing), anyio.create_task_group() as tasks:
                tasks.start_soon(_drain_and_cancel, sandbox, stop, settings, tasks)
                await server.run(incoming, outgoing, server.create_initialization_options())
                tasks.cancel_scope.cancel()
    _log.info("Stopped")


@asynccontextmanager
async def _sessions(sandbox: Sandbox, settings: Settings) -> AsyncGenerator[StreamableHTTPSessionManager, None]:
    """Give the sessions of older clients; with shared state and affinity, sessions that can be resumed elsewhere."""
    options: dict[str, Any] = {
        "app": _server_for(sandbox, settings).mcp,
        "stateless": settings.older_sessions_are_stateless,
        "session_idle_timeout": SESSION_IDLE_SECONDS,
        "max_sessions": MAX_SESSIONS,
        "max_request_body_size": settings.max_request_bytes,
    }
    if settings.older_sessions_are_stateless or not settings.shares_state:
        yield StreamableHTTPSessionManager(**options)
        return
    from sandbox_adapters.container import redis_connection
    from sandbox_adapters.message_log import MessageLog
    from sandbox_mcp.resumption import ResumableSessions

    async with redis_connection(settings) as connection:
        yield ResumableSessions(log=MessageLog(connection, ttl_seconds=settings.ttl_seconds), **options)


def _settle_memory() -> None:
    """Take what the start made out of the garbage collector's sight: it lives as long as the process (gc.freeze)."""
    gc.collect()
    gc.freeze()


def _server_for(sandbox: Sandbox, settings: Settings) -> SandboxServer:
    largest = sandbox.limits.ceiling.resource_limits.timeout_seconds
    default = sandbox.limits.defaults.resource_limits.timeout_seconds
    bounds = [bound for bound in (default, largest) if bound is not None]
    return SandboxServer(
        sandbox.service,
        capabilities=sandbox.capabilities,
        default_timeout_seconds=min(bounds, default=None),
        largest_timeout_seconds=largest,
        guide_replies=settings.guide_replies,
    )


async def _drain(sandbox: Sandbox, stop: Stop, grace_seconds: float) -> None:
    """Drain; a second signal ends the grace."""
    _log.info("Draining", running=sandbox.supervisor.running, grace_seconds=grace_seconds)
    async with anyio.create_task_group() as tasks:

        async def hurry() -> None:
            await stop.hurried.wait()
            sandbox.hurry()

        tasks.start_soon(hurry)
        await sandbox.drain(grace_seconds)
        tasks.cancel_scope.cancel()


async def _drain_and_cancel(sandbox: Sandbox, stop: Stop, settings: Settings, tasks: TaskGroup) -> None:
    await stop.asked.wait()
    await _drain(sandbox, stop, settings.drain_grace_seconds)
    with anyio.move_on_after(STDIO_ANSWER_SECONDS):
        await anyio.sleep_forever()
    tasks.cancel_scope.cancel()


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a Stop while the context lasts; before the start is over they cancel it."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    try:
        with stop.starting:
            yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def _bound_socket(settings: Settings) -> Iterator[socket.socket]:
    """Bind before anything is started, so that a busy port costs one clear line."""
    where = f"{variable_name('host')}={settings.host}, {variable_name('port')}={settings.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
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


def _uvicorn_config(app: SandboxHttpApp, settings: Settings) -> uvicorn.Config:
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


class _QuietServer(uvicorn.Server):
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


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
