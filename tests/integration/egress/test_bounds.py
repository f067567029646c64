"""Timeouts, caps, memory, resets, and an end that leaves nothing open."""

from __future__ import annotations

import gc
import os
import socket
import tracemalloc
from contextlib import suppress

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sandbox_adapters.egress import EgressLimits, EgressProxy, EgressRules
from tests.integration.egress.conftest import BOUND_SECONDS, Serving
from tests.integration.egress.origins import PIECE, Origin, scripted_origin
from tests.integration.egress.test_http import CLOSE, get, status
from tests.integration.egress.test_tunnels import hello_for, open_tunnel, rest
from tests.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

MIB = 1 << 20
BIG = 64 * MIB
SHORT = 0.2


async def forever(stream: anyio.abc.SocketStream) -> None:
    """A server that takes everything and says nothing."""
    while True:
        await stream.receive()


def open_sockets() -> int:
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the list's own, and what a thread closes meanwhile
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


@pytest.mark.parametrize(
    "start", [b"G", b"GET http://origin.test/ HTTP/1.1\r\nHost: or", b"\x05", b"\x05\x01\x00\x05\x01"]
)
async def test_a_slow_head_is_ended(serving: Serving, start: bytes) -> None:
    limits = EgressLimits(handshake_timeout_seconds=SHORT)
    async with serving(ports=[80], limits=limits) as running:
        answer = await running.talk(start)
    if start[:1] == b"G":
        assert status(answer) == 408


async def test_a_slow_hello_is_ended(serving: Serving) -> None:
    limits = EgressLimits(handshake_timeout_seconds=SHORT)
    async with scripted_origin(forever) as port, serving(tls_ports=[port], limits=limits) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", port) as stream:
                await stream.send(hello_for(b"origin.test")[:20])
                await rest(stream)
        assert running.rules_denied() == ["tls_client_hello"]


@pytest.mark.parametrize("sent", [[], [b""], [get(80, "origin.test")]])
async def test_a_connection_over_which_nothing_moves_is_ended(serving: Serving, sent: list[bytes]) -> None:
    limits = EgressLimits(idle_timeout_seconds=SHORT)
    async with scripted_origin(forever) as port, serving(ports=[port], limits=limits) as running:
        await running.talk(*(piece.replace(b":80", f":{port}".encode()) for piece in sent))
        assert running.proxy.open_connections == 0


async def test_a_connection_that_moves_outlives_the_idle_timeout_but_not_the_total_one(serving: Serving) -> None:
    # Several times what a busy machine may keep the pulses waiting.
    limits = EgressLimits(idle_timeout_seconds=4 * SHORT, total_timeout_seconds=10 * SHORT)
    pulses: list[float] = []

    async def handle(stream: anyio.abc.SocketStream) -> None:
        while True:
            await stream.send(b".")
            pulses.append(anyio.current_time())
            await anyio.sleep(SHORT / 4)  # the peer of a timeout has to let time pass

    async with scripted_origin(handle) as port, serving(raw_ports=[port], limits=limits) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", port) as stream:
                await rest(stream)
    assert pulses[-1] - pulses[0] > limits.idle_timeout_seconds


async def test_names_that_take_too_long_and_addresses_that_do_not_answer_become_errors(serving: Serving) -> None:
    async def slow(name: str, port: int) -> list[object]:
        await anyio.sleep_forever()
        return []

    limits = EgressLimits(resolve_timeout_seconds=SHORT, connect_timeout_seconds=SHORT)
    async with serving(ports=[80], lookup=slow, limits=limits) as running:
        assert b"dns_error" in await running.talk(get(80, extra=CLOSE))
    # A listener whose queue is full leaves further connections unanswered (listen(2)).
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        async with serving(ports=[address[1]], limits=limits) as running:
            assert b"connection_timeout" in await running.talk(get(address[1], extra=CLOSE))
        for sock in waiting:
            sock.close()


async def test_connections_beyond_the_cap_wait_and_are_then_served(serving: Serving, origin: Origin) -> None:
    async with (
        scripted_origin(forever) as port,
        serving(ports=[origin.port], raw_ports=[port], limits=EgressLimits(max_connections=2)) as running,
    ):
        first = await open_tunnel(running, "connect", "origin.test", port)
        second = await open_tunnel(running, "socks", "origin.test", port)
        answers: list[bytes] = []

        async def third() -> None:
            answers.append(await running.talk(get(origin.port, extra=CLOSE)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(third)
            await anyio.wait_all_tasks_blocked()
            assert running.proxy.open_connections == 2
            assert not answers
            await first.aclose()
        assert status(answers[0]) == 200
        await second.aclose()


async def test_two_hundred_connections_at_once_are_served(serving: Serving, origin: Origin) -> None:
    answers: list[bytes] = []
    async with serving(ports=[origin.port]) as running:

        async def one() -> None:
            answers.append(await running.talk(get(origin.port, path="/big?bytes=100000", extra=CLOSE)))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(one)
        assert running.proxy.usage().connections == 200
        assert running.proxy.usage().dialled == 200
    assert [len(answer) > 100000 and status(answer) for answer in answers] == [200] * 200


async def test_200_tunnels_open_together_and_close_together(serving: Serving) -> None:
    before = open_sockets()
    async with scripted_origin(forever) as port:  # noqa: SIM117 - each has its own end
        # The origin outlives the proxy, so that only the proxy can have closed what is found closed.
        async with serving(raw_ports=[port]) as running:
            streams = [await open_tunnel(running, "socks", "origin.test", port) for _ in range(200)]
            assert running.proxy.open_connections == 200
            with anyio.fail_after(BOUND_SECONDS):
                await running.proxy.aclose()
                assert running.proxy.open_connections == 0
                for stream in streams:
                    assert await rest(stream) == b""
                    await stream.aclose()
            with pytest.raises(OSError, match=r".*"):
                await anyio.connect_tcp("127.0.0.1", running.port)
    with anyio.fail_after(BOUND_SECONDS):
        while open_sockets() > before:
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("way", ["http", "connect", "socks"])
async def test_a_big_answer_streams_in_bounded_memory(serving: Serving, origin: Origin, way: str) -> None:
    async with serving(ports=[origin.port], raw_ports=[] if way == "http" else [origin.port]) as running:
        if way == "http":
            stream = await anyio.connect_tcp("127.0.0.1", running.port)
            request = get(origin.port, path=f"/big?bytes={BIG}", extra=CLOSE)
        else:
            stream = await open_tunnel(running, way, "origin.test", origin.port)
            request = f"GET /big?bytes={BIG} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        tracemalloc.start()
        try:
            with anyio.fail_after(2 * BOUND_SECONDS):
                async with stream:
                    await stream.send(request)
                    # A reader that starts late: what the proxy takes from the origin meanwhile must stay bounded.
                    await anyio.wait_all_tasks_blocked()
                    head, count = b"", 0
                    while b"\r\n\r\n" not in head:
                        head += await stream.receive(65536)
                    body = head.partition(b"\r\n\r\n")[2]
                    expected = memoryview(PIECE * 2)
                    while True:
                        offset = count % len(PIECE)
                        assert body == expected[offset : offset + len(body)]
                        count += len(body)
                        if count == BIG:
                            break
                        body = await stream.receive(65536)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == BIG
        assert running.proxy.usage().bytes_from_network > BIG
    assert peak < 4 * MIB


async def test_a_big_upload_to_a_slow_reader_waits_instead_of_filling_memory(serving: Serving) -> None:
    release = anyio.Event()
    got = 0

    async def handle(stream: anyio.abc.SocketStream) -> None:
        nonlocal got
        # On asyncio, anyio reads ahead without bound until the first receive.
        got += len(await stream.receive())
        await release.wait()
        try:
            while True:
                got += len(await stream.receive())
        except anyio.EndOfStream:
            await stream.send(b"thanks")

    async with scripted_origin(handle) as port, serving(raw_ports=[port]) as running:
        stream = await open_tunnel(running, "connect", "origin.test", port)
        async with stream:
            tracemalloc.start()
            sent = 0
            with anyio.move_on_after(1):
                while sent < BIG:
                    await stream.send(PIECE)
                    sent += len(PIECE)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert sent < BIG, "nothing held the client back"
            assert peak < 4 * MIB
            release.set()
            with anyio.fail_after(BOUND_SECONDS):
                while sent < BIG // 4:
                    await stream.send(PIECE)
                    sent += len(PIECE)
                await stream.send_eof()
                assert await rest(stream) == b"thanks"
    assert got >= sent


async def test_each_direction_ends_on_its_own(serving: Serving) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        got = await rest(stream)
        await stream.send(b"after the end: " + got)

    async with scripted_origin(handle) as port, serving(raw_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "socks", "origin.test", port) as stream:
                await stream.send(b"question")
                await stream.send_eof()
                assert await rest(stream) == b"after the end: question"


async def test_a_reset_by_the_origin_is_a_reset_for_the_client(serving: Serving) -> None:
    async def handle(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with scripted_origin(handle) as port, serving(raw_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            async with await open_tunnel(running, "connect", "origin.test", port) as stream:
                await stream.send(b"x")
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()


async def test_a_client_that_resets_frees_its_place_and_the_origin(serving: Serving) -> None:
    ended = anyio.Event()

    async def handle(stream: anyio.abc.SocketStream) -> None:
        await rest(stream)
        ended.set()

    async with scripted_origin(handle) as port, serving(raw_ports=[port]) as running:
        with anyio.fail_after(BOUND_SECONDS):
            stream = await open_tunnel(running, "connect", "origin.test", port)
            raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
            await ended.wait()
            while running.proxy.open_connections:
                await anyio.lowlevel.checkpoint()


async def test_the_list_of_denials_is_bounded_and_counts_repeats(serving: Serving) -> None:
    async with serving(ports=[80], limits=EgressLimits(max_denials=3)) as running:
        wanted = [get(80, f"no{number}.example") for number in (0, 0, 1, 2, 3, 4, 0)]
        await running.talk(b"".join(wanted) + get(80, "no0.example", extra=CLOSE))
        denials = running.proxy.denials()
        assert [(denial.host, denial.count) for denial in denials] == [
            ("no0.example", 4), ("no1.example", 1), ("no2.example", 1),
        ]  # fmt: skip
        assert running.proxy.usage().denied == 8


async def test_a_defect_in_one_connection_ends_only_that_one(serving: Serving, origin: Origin) -> None:
    def inject(host: str, port: int) -> dict[str, str]:
        if host == "other.test":
            raise RuntimeError("s3cret")
        return {}

    async with serving(ports=[origin.port], inject_headers=inject, faults=1) as running:
        assert await running.talk(get(origin.port, "other.test", extra=CLOSE)) == b""
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 200


async def test_a_proxy_serves_once_and_can_be_closed_at_any_time() -> None:
    proxy = EgressProxy(EgressRules())
    await proxy.aclose()
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(RuntimeError):
        await proxy.serve(listener)
    assert listener.fileno() == -1


async def test_cancelling_the_server_closes_everything(serving: Serving) -> None:
    proxy = EgressProxy(EgressRules())
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with anyio.create_task_group() as tasks:
        await tasks.start(proxy.serve, listener)
        stream = await anyio.connect_tcp("127.0.0.1", port)
        with anyio.fail_after(BOUND_SECONDS):
            while not proxy.open_connections:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert listener.fileno() == -1
    assert proxy.open_connections == 0
    async with stream:
        assert await rest(stream) == b""


async def test_nothing_listens_is_not_a_fault(serving: Serving) -> None:
    port = free_port()
    async with serving(raw_ports=[port]) as running:
        assert (
            await running.talk(f"CONNECT origin.test:{port} HTTP/1.1\r\nHost: origin.test\r\n\r\n".encode())
        ).startswith(b"HTTP/1.1 502 ")


async def test_a_client_that_sends_many_requests_at_once_lets_others_have_their_turn(serving: Serving) -> None:
    count = 500
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with serving() as running, anyio.create_task_group() as others:
        request = b"GET http://no.example/ HTTP/1.1\r\nHost: no.example\r\n\r\n"
        last = b"GET http://no.example/ HTTP/1.1\r\nHost: no.example\r\nConnection: close\r\n\r\n"
        others.start_soon(take_turns)
        answer = await running.talk(request * (count - 1) + last)
        others.cancel_scope.cancel()
    assert answer.count(b"HTTP/1.1 403") == count
    assert turns >= count


async def ask(stream: anyio.abc.ByteStream, port: int) -> None:
    """Ask on a connection that stays open, and take the whole answer."""
    await stream.send(get(port))
    answer = b""
    with anyio.fail_after(BOUND_SECONDS):
        while not answer.endswith(b"hello"):
            answer += await stream.receive()
    assert status(answer) == 200


async def test_a_connection_kept_open_unused_makes_room_for_the_next(serving: Serving, origin: Origin) -> None:
    limits = EgressLimits(max_connections=2, crowded_idle_seconds=SHORT)
    async with (
        serving(ports=[origin.port], limits=limits) as running,
        await anyio.connect_tcp("127.0.0.1", running.port) as first,
        await anyio.connect_tcp("127.0.0.1", running.port) as second,
    ):
        await ask(first, origin.port)
        await ask(second, origin.port)
        assert status(await running.talk(get(origin.port, extra=CLOSE))) == 200
        with anyio.fail_after(BOUND_SECONDS):
            assert await rest(first) == b""


async def test_connections_that_keep_nobody_waiting_stay_open(serving: Serving, origin: Origin) -> None:
    limits = EgressLimits(max_connections=1, crowded_idle_seconds=SHORT / 4)
    async with serving(ports=[origin.port], limits=limits) as running:
        async with await anyio.connect_tcp("127.0.0.1", running.port) as only:
            await ask(only, origin.port)
            with anyio.move_on_after(SHORT):
                await only.receive()
            await ask(only, origin.port)
        assert running.proxy.usage().connections == 1
