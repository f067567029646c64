"""LocalProcess: one unisolated process tree, seen from the server."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
from anyio.abc import Process as StubProcess

from sandbox_adapters.runners.child.stub import OP_KILL, OP_TERMINATE, STAGE_DIRECTORY
from sandbox_adapters.runners.exit_mapping import Usage, bad_directory, cannot_execute, exit_of_wait_status
from sandbox_adapters.runners.pipes import InputPipe, OutputPipe
from sandbox_core.domain.errors import InputClosed
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.runner import Launch, ProcessExit, Stream

_END_SECONDS = 20
_MAX_ANSWER_BYTES = 65536
_ADVICE = "The workspace starts empty; leave working_directory out, or create the directory in the command."


class LocalProcess:
    """See Process. `receive` must run from the start on; it returns when the tree is gone."""

    def __init__(
        self,
        launch: Launch,
        isolation: Isolation,
        stub: StubProcess,
        channel: socket.socket,
        pipes: tuple[InputPipe, OutputPipe, OutputPipe],
        request: bytes,
    ) -> None:
        self._launch = launch
        self._isolation = isolation
        self._stub = stub
        self._channel = channel
        self._stdin, self._stdout, self._stderr = pipes
        self._unsent = request
        self._sending = anyio.Lock()
        self._ended = anyio.Event()
        self._exit: ProcessExit | None = None
        self._last_stderr = b""

    @property
    def isolation(self) -> Isolation:
        """What is enforced around this process."""
        return self._isolation

    async def read(self, stream: Stream, max_bytes: int) -> bytes:
        """See Process."""
        if stream is Stream.STDOUT:
            return await self._stdout.read(max_bytes)
        if data := await self._stderr.read(max_bytes):
            return data
        await self._ended.wait()
        data, self._last_stderr = self._last_stderr[:max_bytes], self._last_stderr[max_bytes:]
        return data

    async def send_stdin(self, data: bytes) -> None:
        """See Process."""
        if not await self._stdin.write(data):
            raise InputClosed(self._launch.execution_id)

    async def close_stdin(self) -> None:
        """See Process."""
        self._stdin.close()

    async def terminate(self) -> None:
        """See Process."""
        await self._tell(OP_TERMINATE)

    async def kill(self) -> None:
        """See Process."""
        await self._tell(OP_KILL)

    async def wait(self) -> ProcessExit:
        """See Process."""
        await self._ended.wait()
        assert self._exit is not None  # noqa: S101 - set before the event
        return self._exit

    async def receive(self) -> None:
        """Send the request and wait for the answer; also while all around is being cancelled."""
        with anyio.CancelScope(shield=True):
            await self._tell(b"")
            text = b""
            while not text.endswith(b"\n"):
                await anyio.wait_readable(self._channel)
                try:
                    data = self._channel.recv(_MAX_ANSWER_BYTES)
                except ConnectionError:
                    break
                if not data:
                    break
                text += data
            await self._stub.wait()
        anyio.notify_closing(self._channel)
        self._channel.close()
        if text.endswith(b"\n"):
            # Elsewhere the stub ends a process group, and a daemon may have left it.
            checked = 0 if sys.platform == "linux" else None
            self._exit = replace(self._exit_of(json.loads(text)), processes_left=checked)
        else:
            self._exit = _LOST
        self._stdin.close()
        self._ended.set()

    async def aclose(self) -> None:
        """End the tree and release everything; also under cancellation."""
        with anyio.CancelScope(shield=True):
            if self._exit is None:
                await self.kill()
                with anyio.move_on_after(_END_SECONDS) as scope:
                    await self._ended.wait()
                if scope.cancelled_caught:
                    self._stub.kill()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    async def _tell(self, order: bytes) -> None:
        """Send an order, after the request. The stub takes both at any time, so this never waits for long."""
        async with self._sending:
            self._unsent += order
            while self._unsent and self._exit is None:
                try:
                    self._unsent = self._unsent[self._channel.send(self._unsent) :]
                except BlockingIOError:
                    with suppress(anyio.ClosedResourceError):
                        await anyio.wait_writable(self._channel)
                except OSError:
                    return  # the stub has ended

    def _exit_of(self, answer: dict[str, Any]) -> ProcessExit:
        failure = answer["failure"]
        if failure is not None:
            command = self._launch.command
            if failure["stage"] == STAGE_DIRECTORY:
                return bad_directory(command, failure["reason"], _ADVICE).exit
            failed = cannot_execute((command.argv or ("sh",))[0], failure["reason"])
            self._last_stderr = failed.stderr
            return failed.exit
        usage = Usage(answer["user_seconds"], answer["system_seconds"], answer["max_rss_bytes"])
        limits = self._launch.policy.resource_limits
        return exit_of_wait_status(answer["status"], limits, usage, shell_codes=False)


_LOST = ProcessExit(reason=TerminationReason.LOST, message="The process that started it was killed.")
