"""MCP over standard input and output, on descriptors that nobody else can write to.

The SDK's transport reads in a thread, which a signal cannot interrupt, and drops calls that are being answered when
the input ends. This one waits for descriptors in the event loop and answers what was asked before the end of input.
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

_READ_BYTES = 64 * 1024
_WRITE_BYTES = 4096
"""A pipe that is writable takes so much without blocking (PIPE_BUF, pipe(7))."""

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


@asynccontextmanager
async def stdio_transport(*, max_line_bytes: int, answer_seconds: float) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Yield the streams of the one connection. While it lasts, fd 0 is empty and fd 1 is stderr.

    Args:
        max_line_bytes: longest message; a longer one is dropped, as is one that is no message: neither has an answer.
        answer_seconds: how long, after the end of input, calls may take until they are answered; not waited for when
            nobody can read an answer any more.
    """
    with _claimed_descriptors() as (source, sink):
        to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)
        calls = _OpenCalls()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, source, to_server, calls, max_line_bytes, answer_seconds, sink)
            tasks.start_soon(_write, sink, from_server, calls)
            yield incoming, outgoing
            await outgoing.aclose()
            tasks.cancel_scope.cancel()


class _OpenCalls:
    """Requests that came in and have no answer yet."""

    def __init__(self) -> None:
        self._ids: set[types.RequestId] = set()
        self._changed = anyio.Event()

    def received(self, message: types.JSONRPCMessage) -> None:
        match message:
            case types.JSONRPCRequest(method="subscriptions/listen"):
                pass  # its answer is a stream that ends with the connection: nothing to wait for
            case types.JSONRPCRequest():
                self._ids.add(message.id)
            case types.JSONRPCNotification(method="notifications/cancelled"):
                self._forget((message.params or {}).get("requestId"))
            case _:
                pass

    def sent(self, message: types.JSONRPCMessage) -> None:
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._forget(message.id)

    def _forget(self, request_id: object) -> None:
        if isinstance(request_id, str | int):
            self._ids.discard(request_id)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_answered(self) -> None:
        while self._ids:
            await self._changed.wait()


async def _read(
    source: int,
    to_server: MemoryObjectSendStream[SessionMessage | Exception],
    calls: _OpenCalls,
    max_line_bytes: int,
    answer_seconds: float,
    sink: int,
) -> None:
    rest = b""
    too_long = False
    async with to_server:
        try:
            while data := await _read_some(source):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if too_long:
                        too_long = False
                    elif line.strip():
                        await to_server.send(_parsed(line, calls))
                if len(rest) > max_line_bytes:
                    if not too_long:
                        await to_server.send(ValueError(f"A message may have {max_line_bytes} bytes."))
                    too_long, rest = True, b""
            if rest.strip() and not too_long:
                await to_server.send(_parsed(rest, calls))
            with anyio.move_on_after(answer_seconds):
                await _wait_answered(calls, sink)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the server has stopped reading, so it is ending


async def _wait_answered(calls: _OpenCalls, sink: int) -> None:
    """Return when all calls are answered, or the other end of `sink` is gone, as that of a killed client is."""
    async with anyio.create_task_group() as tasks:

        async def until_unread() -> None:
            # The event loop reports an error or a hang-up (poll(2)) to who waits for something to read. A socket that
            # is input as well is readable for ever now that the input has ended: that alone says nothing.
            with suppress(PermissionError):
                await anyio.wait_readable(sink)
                if _is_unread(sink):
                    tasks.cancel_scope.cancel()

        tasks.start_soon(until_unread)
        await calls.wait_answered()
        tasks.cancel_scope.cancel()


def _is_unread(sink: int) -> bool:
    """True when nobody has the other end: POLLERR of a pipe, POLLHUP of a socket."""
    state = select.poll()
    state.register(sink, 0)
    return bool(state.poll(0))


def _parsed(line: bytes, calls: _OpenCalls) -> SessionMessage | Exception:
    try:
        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError as error:
        return error
    calls.received(message)
    return SessionMessage(message)


async def _read_some(source: int) -> bytes:
    try:
        await anyio.wait_readable(source)
    except PermissionError:
        # epoll refuses regular files, which are always readable (epoll_ctl(2), EPERM).
        await anyio.lowlevel.checkpoint()
    return os.read(source, _READ_BYTES)


async def _write(sink: int, from_server: MemoryObjectReceiveStream[SessionMessage], calls: _OpenCalls) -> None:
    async with from_server:
        async for item in from_server:
            data = memoryview(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            try:
                while data:
                    data = data[await _write_some(sink, data[:_WRITE_BYTES]) :]
            except BrokenPipeError:
                return
            calls.sent(item.message)


async def _write_some(sink: int, data: memoryview) -> int:
    try:
        await anyio.wait_writable(sink)
    except PermissionError:
        await anyio.lowlevel.checkpoint()
    return os.write(sink, data)


@contextmanager
def _claimed_descriptors() -> Iterator[tuple[int, int]]:
    """Move standard input and output to private descriptors, so that stray prints and children miss the protocol."""
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        yield source, sink
    finally:
        os.dup2(source, 0)
        os.dup2(sink, 1)
        os.close(source)
        os.close(sink)
