"""The two ways to serve: HTTP and stdio. Start, stop on a signal, leave nothing behind."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from sandbox_adapters import event_loop
from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.logging import get_logger
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings, check_exposure
from sandbox_mcp import garbage
from sandbox_mcp.http_app import MCP_PATH, SandboxHttpApp
from sandbox_mcp.http_names import allowed_names
from sandbox_mcp.json_answers import AsAccepted, StandaloneRequests
from sandbox_mcp.listening import QuietServer, bound_socket, shown, uvicorn_config
from sandbox_mcp.metrics import check_metrics
from sandbox_mcp.server import SandboxServer
from sandbox_mcp.service_manager import READY, tell_manager
from sandbox_mcp.stdio_transport import stdio_transport
from sandbox_mcp.stopping import Stop, drain, stop_on_signals

ANSWER_SECONDS = 3.0
"""How long a shutdown waits for answers to be read, once every execution has ended."""

LINGER_SECONDS = 0.5
"""How long after the last answer others are still given: SDK clients list the tools to check their first result."""

STDIO_ANSWER_SECONDS = 0.5
"""How long a drained stdio server goes on writing answers; its client reads them at once."""

MAX_SESSIONS = 10_000
SESSION_IDLE_SECONDS = 1800.0

_log = get_logger(__name__)


def serve_http(settings: Settings) -> None:
    """Run `run_http` in an event loop of its own."""
    event_loop.run(run_http, settings)


def serve_stdio(settings: Settings) -> None:
    """Run `run_stdio` in an event loop of its own."""
    event_loop.run(run_stdio, settings)


async def run_http(settings: Settings, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve Streamable HTTP at `/mcp` until SIGTERM or SIGINT; reports the bound port when it is listening.

    On the first signal nothing new is admitted, and where other replicas answer too no connection is accepted any more.
    Running executions get `drain_grace_seconds`, then they are ended and marked; the second signal ends the grace.
    Returns when no process is left.

    Raises SettingsError, AddressUnavailable and RunnerUnavailable, before anything is served.
    """
    check_exposure(settings)
    check_metrics(settings)
    names = allowed_names(settings)
    tokens = load_auth_tokens(settings)
    with bound_socket(settings.host, settings.port) as listener, stop_on_signals() as stop:
        async with open_sandbox(settings) as sandbox:
            stop.started = True
            server = _server_for(sandbox, settings, older_subscriptions=not settings.older_sessions_are_stateless)
            manager = _sessions(server, sandbox, settings, principals=max(1, len(tokens)))
            app = SandboxHttpApp(sandbox, manager, settings, names=names, tokens=tokens)
            web = QuietServer(uvicorn_config(app, settings))
            async with anyio.create_task_group() as tasks:
                async with manager.run():
                    tasks.start_soon(web.serve, [listener])
                    await web.ready.wait()
                    port = int(listener.getsockname()[1])
                    _log.info("Listening", url=f"http://{shown(settings.host)}:{port}{MCP_PATH}", auth=bool(tokens))
                    garbage.settle()
                    tell_manager(READY)
                    task_status.started(port)
                    await stop.asked.wait()
                    was_busy = sandbox.supervisor.running > 0
                    if settings.shares_state:
                        app.moving_away = True
                        await web.stop_listening()
                        server.listen_streams.close()
                    await drain(sandbox, stop, settings.drain_grace_seconds)
                    sandbox.service.end_waits()
                    server.listen_streams.close()
                    with anyio.move_on_after(ANSWER_SECONDS):
                        await web.asked_by_all()
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
    with stop_on_signals() as stop:
        async with open_sandbox(settings) as sandbox:
            stop.started = True
            server = _server_for(sandbox, settings, older_subscriptions=True).mcp
            connection = stdio_transport(
                max_line_bytes=settings.max_request_bytes, answer_seconds=settings.drain_grace_seconds
            )
            async with connection as (incoming, outgoing), anyio.create_task_group() as tasks:
                tasks.start_soon(_drain_and_cancel, sandbox, stop, settings, tasks)
                await server.run(incoming, outgoing, server.create_initialization_options())
                tasks.cancel_scope.cancel()
    _log.info("Stopped")


def _sessions(
    server: SandboxServer, sandbox: Sandbox, settings: Settings, *, principals: int
) -> StreamableHTTPSessionManager:
    """Return the sessions of older clients; with shared state and affinity, sessions that can be resumed elsewhere."""
    options: dict[str, Any] = {
        "app": server.mcp,
        "session_idle_timeout": SESSION_IDLE_SECONDS,
        "max_sessions": MAX_SESSIONS,
        "principals": principals,
        "max_request_body_size": settings.max_request_bytes,
    }
    if settings.older_sessions_are_stateless:
        return StandaloneRequests(**options)
    if sandbox.messages is None:
        return AsAccepted(**options)
    from sandbox_mcp.resumption import ResumableSessions

    return ResumableSessions(log=sandbox.messages, **options)


def _server_for(sandbox: Sandbox, settings: Settings, *, older_subscriptions: bool) -> SandboxServer:
    largest = sandbox.limits.ceiling.resource_limits.timeout_seconds
    default = sandbox.limits.defaults.resource_limits.timeout_seconds
    bounds = [bound for bound in (default, largest) if bound is not None]
    return SandboxServer(
        sandbox.service,
        capabilities=sandbox.capabilities,
        default_timeout_seconds=min(bounds, default=None),
        largest_timeout_seconds=largest,
        guide_replies=settings.guide_replies,
        older_subscriptions=older_subscriptions,
        ttl_seconds=settings.ttl_seconds,
    )


async def _drain_and_cancel(sandbox: Sandbox, stop: Stop, settings: Settings, tasks: TaskGroup) -> None:
    await stop.asked.wait()
    await drain(sandbox, stop, settings.drain_grace_seconds)
    with anyio.move_on_after(STDIO_ANSWER_SECONDS):
        await anyio.sleep_forever()
    tasks.cancel_scope.cancel()
