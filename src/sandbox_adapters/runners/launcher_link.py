"""LauncherLink: the server's end of a launcher process."""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
import struct
import subprocess  # noqa: TID251 - runners are where processes are started
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from sandbox_adapters.runners import child_program
from sandbox_adapters.runners.bubblewrap_walls import Walls
from sandbox_adapters.runners.child import wire
from sandbox_adapters.runners.child.leaves import branch_argument
from sandbox_adapters.runners.controls import Control

_log = logging.getLogger("sandbox_adapters.runners")

_CHANNEL_BUFFER_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 4096
_EXIT_SECONDS = 15
"""The launcher gives up on processes by itself after ten."""
_SO_SNDBUFFORCE = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What the launcher says when a job's tree is gone. `error` is set when bwrap could not be started at all."""

    wait_status: int
    executed: bool
    user_seconds: float
    system_seconds: float
    max_rss_bytes: int | None
    peak_memory_bytes: int | None
    oom_kills: int | None
    peak_processes: int | None
    forks_refused: int | None
    processes_left: int | None
    error: str


class LauncherLink:
    """One launcher process and the socket to it. Made by `spawn`; `receive` must run until it returns.

    `on_answer` is called with each job's number and answer, in the event loop.
    """

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._channel = channel
        self._process = process
        self._sending = anyio.Lock()
        self.alive = True

    @classmethod
    def spawn(cls, *, directory: str, walls: Walls, ready_children: int, keep_open: Sequence[int]) -> LauncherLink:
        """Start a launcher that removes `directory` and its cgroups at its end and holds `keep_open` until then.

        What it starts stands behind `walls`; `ready_children` processes wait for it ahead.

        Blocks for about a millisecond. Raises OSError.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _grow_buffer(ours)
            ours.setblocking(False)
            with theirs:
                process = subprocess.Popen(
                    child_program.command(
                        "launcher",
                        *(str(theirs.fileno()), str(walls.filter_descriptor), directory, str(ready_children)),
                        walls.controls.argument(),
                        *map(branch_argument, walls.cgroups.branches),
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={} if walls.controls.has(Control.EMPTY_ENVIRONMENT) else None,
                    cwd="/",
                    pass_fds=(theirs.fileno(), walls.filter_descriptor, *walls.cgroups.locks, *keep_open),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return cls(ours, process)

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._process.pid

    async def run(self, number: int, request: wire.RunRequest, descriptors: Sequence[int]) -> None:
        """Start job `number`. Sent wholly or, on any error and on cancellation, not at all. Raises OSError."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
        await self._send(request.pack(number), ancillary)

    async def terminate(self, number: int) -> None:
        """SIGTERM to the job's payload. No error when the job or the launcher is gone."""
        await self._tell(wire.OP_TERMINATE, number)

    async def kill(self, number: int) -> None:
        """SIGKILL to the job's tree. No error when the job or the launcher is gone."""
        await self._tell(wire.OP_KILL, number)

    async def receive(self, on_answer: Callable[[int, Answer], None]) -> None:
        """Pass on answers until the launcher is gone, then reap it."""
        try:
            while True:
                try:
                    packet = self._channel.recv(_MAX_ANSWER_BYTES)
                except BlockingIOError:
                    await anyio.wait_readable(self._channel)
                    continue
                except ConnectionError:
                    break
                if not packet:
                    break
                number, answer = _decode(packet)
                on_answer(number, answer)
        finally:
            self.alive = False
            with anyio.CancelScope(shield=True):
                await self._reap()

    def shutdown(self) -> None:
        """Tell the launcher to end every job and itself; `receive` returns when it has. Again is no error."""
        self.alive = False
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    async def _reap(self) -> None:
        self.shutdown()
        with anyio.move_on_after(_EXIT_SECONDS, shield=True):
            descriptor = os.pidfd_open(self._process.pid)
            try:
                await anyio.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        if self._process.poll() is None:
            _log.error("the launcher did not end in %d s and is killed", _EXIT_SECONDS)
            self._process.kill()
        self._process.wait()
        self._channel.close()

    async def _tell(self, operation: bytes, number: int) -> None:
        try:
            await self._send(wire.COMMAND.pack(operation, number), [])
        except OSError:
            return

    async def _send(self, packet: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        try:
            self._channel.sendmsg([packet], ancillary)
        except BlockingIOError:
            pass
        else:
            return
        async with self._sending:
            while self.alive:
                await anyio.wait_writable(self._channel)
                try:
                    self._channel.sendmsg([packet], ancillary)
                except BlockingIOError:
                    continue
                return
        raise BrokenPipeError(errno.EPIPE, "the launcher is gone")


def _decode(packet: bytes) -> tuple[int, Answer]:
    number, status, flags, user, system, rss_kib, *tree = wire.ANSWER.unpack_from(packet)
    memory, oom_kills, processes, refused, left = (None if count < 0 else count for count in tree)
    return number, Answer(
        wait_status=status,
        executed=bool(flags & wire.FLAG_EXECUTED),
        user_seconds=user,
        system_seconds=system,
        max_rss_bytes=rss_kib * 1024 if rss_kib >= 0 else None,
        peak_memory_bytes=memory,
        oom_kills=oom_kills,
        peak_processes=processes,
        forks_refused=refused,
        processes_left=left,
        error=packet[wire.ANSWER.size :].decode(errors="replace"),
    )


def _grow_buffer(channel: socket.socket) -> None:
    """Make room for a packet with the largest command; root may go past net.core.wmem_max (socket(7))."""
    value = struct.pack("i", _CHANNEL_BUFFER_BYTES)
    try:
        channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, value)
    except PermissionError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, value)
