"""How `sandbox run` writes: raw bytes to both outputs, or events as lines of JSON. Never blocks the event loop."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Mapping
from typing import Any, ClassVar

import anyio

from sandbox_core.domain.errors import SandboxError
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_mcp.cli_ending import ending_notices
from sandbox_mcp.payloads import measures

_STDOUT, _STDERR = 1, 2
_SAFE_WRITE_BYTES = 4096
"""A pipe that poll(2) calls writable takes this much without blocking (PIPE_BUF, pipe(7))."""


class ReaderGone(Exception):
    """Whoever read our output has closed it."""


class OutputFailed(SandboxError):
    """Our output cannot be written, for example to a disk that is full."""

    code: ClassVar[str] = "output_failed"


class Sink:
    """One of our output descriptors. Waits for room outside the event loop's back.

    A pipe or terminal is opened again, so that only our own view of it is non-blocking: the descriptor that we
    inherited is shared with others.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._chunk_bytes = _SAFE_WRITE_BYTES
        self._can_wait = True
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            self._descriptor = -1  # closed by our parent: there is nobody to write to
            return
        if stat.S_ISFIFO(mode) or os.isatty(descriptor):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._descriptor = os.open(f"/dev/fd/{descriptor}", flags)
            except OSError:
                return
            self._chunk_bytes = 1 << 20
        elif not stat.S_ISSOCK(mode):
            self._can_wait = False

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises ReaderGone, OutputFailed."""
        if self._descriptor < 0:
            return
        left = memoryview(data)
        try:
            while left:
                await self._wait()
                try:
                    written = os.write(self._descriptor, left[: self._chunk_bytes])
                except BlockingIOError:
                    continue
                left = left[written:]
        except (BrokenPipeError, ConnectionResetError):
            raise ReaderGone from None
        except OSError as error:
            raise OutputFailed(f"The output cannot be written: {error.strerror}.") from None

    async def _wait(self) -> None:
        if not self._can_wait:
            return
        try:
            await anyio.wait_writable(self._descriptor)
        except PermissionError:  # epoll_ctl(2): a descriptor that is always ready
            self._can_wait = False


class Output:
    """Writes events as `sandbox run` shows them."""

    def __init__(self, *, json_lines: bool, verbose: bool = False) -> None:
        self._json_lines = json_lines
        self._verbose = verbose
        self._stdout = Sink(_STDOUT)
        self._stderr = Sink(_STDERR)

    async def show(self, event: OutputEvent) -> None:
        """Write one event; in the raw form only output, and one line for what else went on.

        Raises ReaderGone, OutputFailed.
        """
        if self._json_lines:
            await self._stdout.write(json_line(event))
        elif event.kind is EventKind.STDOUT:
            await self._stdout.write(event.data)
        elif event.kind is EventKind.STDERR:
            await self._stderr.write(event.data)
        elif event.kind not in (EventKind.READY, EventKind.EXIT):
            await self.notice(event.data.decode("utf-8", "replace"))

    async def show_end(self, event: OutputEvent, execution: Execution) -> None:
        """Write the terminal event, and what was refused, used and enforced. Raises ReaderGone, OutputFailed.

        As JSON all of it is in the event's own line. The raw form has lines for what was refused and, when it was
        asked to be verbose, for the rest.
        """
        if self._json_lines:
            more = measures(execution)
            more.pop("duration_ms")
            await self._stdout.write(json_line(event, more))
            return
        await self.show(event)
        for line in ending_notices(execution, verbose=self._verbose):
            await self.notice(line)

    async def notice(self, text: str) -> None:
        """Write one line of our own to standard error. Raises ReaderGone, OutputFailed."""
        await self._stderr.write(f"sandbox: {' '.join(text.split())}\n".encode())


def json_line(event: OutputEvent, more: Mapping[str, Any] | None = None) -> bytes:
    """Return an event as one line, with `more` fields: text when its bytes are UTF-8, else base64 and `encoding`."""
    line: dict[str, Any] = {"event_id": event.event_id, "type": event.kind.value}
    try:
        line["data"] = event.data.decode("utf-8")
    except UnicodeDecodeError:
        line["data"] = base64.b64encode(event.data).decode("ascii")
        line["encoding"] = "base64"
    line["ts"] = event.at.isoformat()
    # A field never hides one of the names above, which come first for people who read along.
    return json.dumps({**line, **event.fields, **(more or {}), **line}, ensure_ascii=False).encode() + b"\n"
