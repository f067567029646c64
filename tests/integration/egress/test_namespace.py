"""The listener inside another network namespace, the proxy outside: the arrangement that sandboxes use."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandbox_adapters.egress import AddressPolicy, EgressProxy, EgressRules
from tests.integration.egress.conftest import BOUND_SECONDS, lookup
from tests.integration.egress.origins import Origin
from tests.integration.egress.test_http import CLOSE, get, status

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


class Namespace:
    """A thread in a network namespace of its own, with nothing but `lo` (unshare(2) moves only the calling thread)."""

    def __init__(self) -> None:
        self._work: Queue[Callable[[], None] | None] = Queue()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function` in the namespace and return what it returns."""
        results: Queue[tuple[Any, BaseException | None]] = Queue()

        def work() -> None:
            try:
                results.put((function(*arguments), None))
            except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
                results.put((None, error))

        self._work.put(work)
        result, error = results.get(timeout=BOUND_SECONDS)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()


def enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    with socket.socket() as sock:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, name + bytes(24)), 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, name + struct.pack("H", flags | IFF_UP) + bytes(22))


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS) as sock:
        sock.sendall(data)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="network namespaces are Linux's")
async def test_a_sandbox_without_any_route_reaches_what_is_allowed_and_nothing_else(origin: Origin) -> None:
    namespace = Namespace()
    try:
        try:
            namespace.call(enter)
        except PermissionError:
            pytest.skip("does not apply: only root may make a network namespace")
        listener = namespace.call(socket.create_server, ("127.0.0.1", 0))
        port = listener.getsockname()[1]
        rules = EgressRules(("origin.test",), ports=frozenset({origin.port}))
        proxy = EgressProxy(rules, addresses=AddressPolicy(loopback_reachable_for_tests=True), lookup=lookup)
        with pytest.raises(OSError, match="refused"):
            namespace.call(ask, origin.port, b"")
        async with anyio.create_task_group() as tasks:
            await tasks.start(proxy.serve, listener)
            for host, code in (("origin.test", 200), ("other.test", 403)):
                request = get(origin.port, host, extra=CLOSE)
                assert status(await anyio.to_thread.run_sync(namespace.call, ask, port, request)) == code
            with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port)):
                pass
            await proxy.aclose()
        assert proxy.usage().connections == 2
        assert len(origin.seen) == 1
    finally:
        namespace.close()
