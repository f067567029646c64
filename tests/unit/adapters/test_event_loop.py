"""The event loop goes on when the kernel has no more epoll watches for this user."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from sandbox_adapters import event_loop

if sys.platform != "linux":
    pytest.skip("does not apply: epoll is Linux's", allow_module_level=True)

SelectorT = TypeVar("SelectorT", bound=selectors.EpollSelector)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Refusing:
    """An epoll that takes `room` descriptors and then refuses as the kernel does."""

    def __init__(self, real: object, room: int) -> None:
        self._real = real
        self.room = room

    def register(self, descriptor: int, events: int) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._real.register(descriptor, events)  # type: ignore[attr-defined]  # select.epoll

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def _with_room(selector: SelectorT, room: int) -> SelectorT:
    selector._selector = _Refusing(selector._selector, room)  # type: ignore[attr-defined]  # not in its stubs
    return selector


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Four pairs of connected sockets."""
    made = [socket.socketpair() for _ in range(4)]
    yield made
    for pair in made:
        for each in pair:
            each.close()


async def _echo(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await stream.send(await stream.receive())


async def _serve_and_spawn() -> tuple[bytes, bytes]:
    """Use what a server does: a listener, connections, a program with pipes, a thread."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, _echo)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(b"hello")
            answer = await client.receive()
        done = await anyio.run_process([sys.executable, "-c", "print(input())"], input=b"from a program\n")
        await anyio.to_thread.run_sync(os.getpid)
        tasks.cancel_scope.cancel()
    return answer, done.stdout


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4, 5])
def test_everything_works_from_the_watch_on_that_is_refused(room: int) -> None:
    options = {"loop_factory": lambda: asyncio.SelectorEventLoop(_with_room(event_loop.SteadySelector(), room))}
    assert anyio.run(_serve_and_spawn, backend_options=options) == (b"hello", b"from a program\n")


def test_the_usual_selector_breaks_there(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with _with_room(selectors.EpollSelector(), 1) as selector:
        selector.register(pairs[0][0], _READ)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            selector.register(pairs[1][0], _READ)


def test_servers_and_workers_run_in_it() -> None:
    async def selector_of_the_loop() -> object:
        return asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # its own business

    assert isinstance(event_loop.run(selector_of_the_loop), event_loop.SteadySelector)


def test_what_either_watches_is_found_changed_and_let_go(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with _with_room(event_loop.SteadySelector(), 2) as selector:
        for number, (one, _) in enumerate(pairs):
            selector.register(one, _READ, number)
        assert selector.select(0) == []
        for _, other in pairs:
            other.send(b"x")
        assert sorted(key.data for key, _ in selector.select(5)) == [0, 1, 2, 3]
        assert [selector.get_key(one).data for one, _ in pairs] == [0, 1, 2, 3]
        assert [selector.get_map()[one.fileno()].data for one, _ in pairs] == [0, 1, 2, 3]
        for number, (one, _) in enumerate(pairs):
            selector.modify(one, _WRITE, number + 10)
        assert sorted((key.data, events) for key, events in selector.select(5)) == [
            (number, _WRITE) for number in range(10, 14)
        ]
        with pytest.raises(KeyError):
            selector.register(pairs[3][0], _READ)
        for number, (one, _) in enumerate(pairs):
            assert selector.unregister(one).data == number + 10
            with pytest.raises(KeyError):
                selector.get_key(one)
        assert selector.select(0) == []


def test_once_nothing_is_beside_epoll_it_is_alone_again(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    with _with_room(event_loop.SteadySelector(), 1) as selector:
        before = type(selector.get_map())
        selector.register(pairs[0][0], _READ)
        selector.register(pairs[1][0], _READ)
        assert type(selector.get_map()) is not before
        selector.unregister(pairs[1][0])
        assert type(selector.get_map()) is before
        assert len(selector.get_map()) == 1


def test_other_refusals_are_errors(tmp_path: Path) -> None:
    # epoll_ctl(2), EPERM: stdio_transport reads such a file in another way.
    with (
        event_loop.SteadySelector() as selector,
        (tmp_path / "file").open("w") as file,
        pytest.raises(PermissionError),
    ):
        selector.register(file, _WRITE)
