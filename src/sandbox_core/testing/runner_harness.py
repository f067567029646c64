"""Helpers of the runner contract: run one command to its end, and look for what it left behind."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import InputClosed
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.runner import Launch, Process, ProcessExit, ProcessRunner, Stream

PATIENCE_SECONDS = 60
"""The bound of every wait in the suite."""
READ_BYTES = 65536
NO_POLICY = ExecutionPolicy()


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended, and all that it printed."""

    exit: ProcessExit
    stdout: bytes
    stderr: bytes


def launch_of(command: Command, policy: ExecutionPolicy = NO_POLICY) -> Launch:
    """Return a launch with a made-up execution id."""
    return Launch(ExecutionId("00000000-0000-7000-8000-000000000000"), command, policy)


async def read_all(process: Process, stream: Stream) -> bytes:
    """Read one stream to its end."""
    pieces = []
    while data := await process.read(stream, READ_BYTES):
        pieces.append(data)
    return b"".join(pieces)


async def read_until(process: Process, stream: Stream, marker: bytes) -> bytes:
    """Read one stream until it has shown `marker`; all that was read."""
    text = b""
    while marker not in text:
        data = await process.read(stream, READ_BYTES)
        assert data, f"the stream ended before {marker!r}: {text[-500:]!r}"
        text += data
    return text


async def finish(process: Process) -> Finished:
    """Read both streams to their ends, and wait."""
    output: dict[Stream, bytes] = {}

    async def read(stream: Stream) -> None:
        output[stream] = await read_all(process, stream)

    async with anyio.create_task_group() as tasks:
        for stream in Stream:
            tasks.start_soon(read, stream)
        exit_ = await process.wait()
    return Finished(exit_, output[Stream.STDOUT], output[Stream.STDERR])


async def run_command(runner: ProcessRunner, command: Command, policy: ExecutionPolicy = NO_POLICY) -> Finished:
    """Run one command to its end, feeding `command.stdin` as the supervisor does. Bounded."""
    with anyio.fail_after(PATIENCE_SECONDS):
        async with runner.start(launch_of(command, policy)) as process, anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, process, command.stdin)
            finished = await finish(process)
            tasks.cancel_scope.cancel()
    return finished


async def _feed(process: Process, data: bytes) -> None:
    with suppress(InputClosed):
        if data:
            await process.send_stdin(data)
        await process.close_stdin()


def processes_with(token: str) -> list[int]:
    """Return the pids on this machine whose command line holds `token`. Needs /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command_line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if token.encode() in command_line:
            found.append(int(folder.name))
    return found


def open_descriptors() -> int:
    """Return how many descriptors this process has open. Needs /proc."""
    return len(list(Path("/proc/self/fd").iterdir()))
