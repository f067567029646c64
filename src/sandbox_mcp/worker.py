"""`sandbox worker`: runs what waits in the shared queue, and answers `/health`. It serves no MCP."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus

from sandbox_adapters import event_loop
from sandbox_adapters.logging import get_logger
from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import MOST_QUEUED, Settings, SettingsError
from sandbox_mcp import garbage
from sandbox_mcp.health import HEALTH_PATH, HealthApp
from sandbox_mcp.listening import QuietServer, bound_socket, shown, uvicorn_config
from sandbox_mcp.metrics import check_metrics, metrics_app
from sandbox_mcp.service_manager import READY, tell_manager
from sandbox_mcp.stopping import drain, stop_on_signals

_log = get_logger(__name__)


def check_worker(settings: Settings) -> None:
    """Raise SettingsError for settings under which a worker would have nothing to do."""
    if settings.queue_url is None:
        raise SettingsError(
            "SANDBOX_QUEUE_URL is not set: a worker takes its work from the queue of the servers. Set it and REDIS_URL "
            "as they have them."
        )
    if not settings.local_runner:
        raise SettingsError("SANDBOX_LOCAL_RUNNER is false: a worker runs what it takes. Unset it here.")


def work(settings: Settings) -> None:
    """Run `run_worker` in an event loop of its own."""
    event_loop.run(run_worker, settings)


async def run_worker(settings: Settings, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
    """Take and run executions until SIGTERM or SIGINT; reports the port of `/health` when it takes work.

    On the first signal nothing new is taken; what runs gets `drain_grace_seconds`, then it is ended and marked. The
    second signal ends the grace. What waits in the queue stays there for others.

    Raises SettingsError, AddressUnavailable and RunnerUnavailable, before anything is taken.
    """
    check_worker(settings)
    check_metrics(settings)
    # Servers bound what they accept. What a worker queues was accepted before: it may wait behind any number.
    settings = settings.model_copy(update={"max_queued": MOST_QUEUED})
    host = settings.worker_host
    fields = ("worker_host", "worker_port")
    with bound_socket(host, settings.worker_port, fields=fields) as listener, stop_on_signals() as stop:
        async with open_sandbox(settings) as sandbox, anyio.create_task_group() as tasks:
            stop.started = True
            web = QuietServer(uvicorn_config(HealthApp(sandbox, metrics_app(sandbox, settings)), settings))
            tasks.start_soon(web.serve, [listener])
            await web.ready.wait()
            port = int(listener.getsockname()[1])
            url = f"http://{shown(host)}:{port}{HEALTH_PATH}"
            _log.info("Working", health=url, concurrency=sandbox.supervisor.capacity)
            garbage.settle()
            tell_manager(READY)
            task_status.started(port)
            await stop.asked.wait()
            await drain(sandbox, stop, settings.drain_grace_seconds)
            web.should_exit = True
    _log.info("Stopped")
