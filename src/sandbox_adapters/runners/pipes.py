"""The server's ends of a process's pipes: non-blocking descriptors, read and written in place, without threads."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

import anyio

_FIRST_PIPE_BYTES = 64 * 1024
"""The capacity of a new pipe (pipe(7))."""
_GROWN_PIPE_BYTES = 256 * 1024
_F_SETPIPE_SZ = 1031


def open_pipes(theirs: list[int], ours: list[int], *, has_input: bool, uid: int) -> None:
    """Append a process's standard input, output and error to `theirs` and our ends to `ours`, also when it fails.

    Without input that is the null device, and ours -1. With a uid (not -1) the pipes become that one's, so that a
    command may open /dev/stdin, /dev/stdout and /dev/stderr. Raises OSError.
    """
    if has_input:
        read, write = os.pipe2(os.O_CLOEXEC)
        theirs.append(read)
        ours.append(write)
    else:
        # Opened anew: flags and locks of one description would be shared by every execution that has it.
        theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        ours.append(-1)
    for _ in range(2):
        read, write = os.pipe2(os.O_CLOEXEC)
        theirs.append(write)
        ours.append(read)
    if uid >= 0:
        for descriptor in theirs if has_input else theirs[1:]:
            os.fchown(descriptor, uid, uid)


def memory_file(name: str, content: bytes) -> int:
    """Return a descriptor that reads `content` from its start. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class OutputPipe:
    """The reading end of a pipe, with at most one reader at a time. Takes ownership of `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._grown = False

    async def read(self, max_bytes: int) -> bytes:
        """Return 1 to `max_bytes` bytes as soon as there are any; b"" at the end, and once closed."""
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, max_bytes)
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._descriptor)
                except anyio.ClosedResourceError:
                    return b""
                continue
            if not data:
                self.close()
            elif len(data) >= _FIRST_PIPE_BYTES and not self._grown:
                self._grow()
            return data
        return b""

    def read_now(self, max_bytes: int) -> bytes:
        """Return up to `max_bytes` bytes that are there already; b"" when there are none."""
        if self._descriptor < 0:
            return b""
        try:
            return os.read(self._descriptor, max_bytes)
        except BlockingIOError:
            return b""

    @property
    def descriptor(self) -> int:
        """The descriptor, -1 once closed."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor; a reader that waits gets b"". Again is no error."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            anyio.notify_closing(descriptor)
            os.close(descriptor)

    def _grow(self) -> None:
        self._grown = True
        try:
            fcntl.fcntl(self._descriptor, _F_SETPIPE_SZ, _GROWN_PIPE_BYTES)
        except OSError:
            return  # over the user's share of pipe pages (pipe(7)), or not Linux: it works as it is


class InputPipe:
    """The writing end of a pipe. Takes ownership of `descriptor`; -1 is one that is closed already."""

    def __init__(self, descriptor: int) -> None:
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._writing = anyio.Lock()

    async def write(self, data: bytes) -> bool:
        """Write all of `data`, waiting while the pipe is full; False when the pipe is closed at either end."""
        async with self._writing:
            view = memoryview(data)
            while self._descriptor >= 0:
                if not view:
                    return True
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    try:
                        await anyio.wait_writable(self._descriptor)
                    except anyio.ClosedResourceError:
                        return False
                except BrokenPipeError:
                    self.close()
            return False

    def write_last(self, data: bytes) -> bool:
        """Write all of `data` at once and close; False when it does not fit, or the pipe is closed at either end."""
        try:
            return self._descriptor >= 0 and os.write(self._descriptor, data) == len(data)
        except OSError:
            return False
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptor; a writer that waits gets False. Again is no error."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            anyio.notify_closing(descriptor)
            os.close(descriptor)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors; negative ones stand for none."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
