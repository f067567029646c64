"""How a server process is told to stop, and how it drains."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from sandbox_adapters.logging import get_logger
from sandbox_adapters.sandbox import Sandbox
from sandbox_mcp.service_manager import STOPPING, tell_manager

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


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
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


async def drain(sandbox: Sandbox, stop: Stop, grace_seconds: float) -> None:
    """Drain; a second signal ends the grace."""
    tell_manager(STOPPING)
    _log.info("Draining", running=sandbox.supervisor.running, grace_seconds=grace_seconds)
    async with anyio.create_task_group() as tasks:

        async def hurry() -> None:
            await stop.hurried.wait()
            sandbox.hurry()

        tasks.start_soon(hurry)
        await sandbox.drain(grace_seconds)
        tasks.cancel_scope.cancel()
