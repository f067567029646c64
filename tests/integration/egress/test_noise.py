"""Damaged requests of every kind, whole connections at a time: never a fault, never a way around the rules."""

from __future__ import annotations

import random

import anyio
import pytest

from tests.integration.egress.conftest import BOUND_SECONDS, Serving
from tests.integration.egress.origins import Origin
from tests.integration.egress.test_http import get
from tests.integration.egress.test_tunnels import connect, hello_for, rest, socks

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SAMPLES = 600
AT_ONCE = 20
PIECES = [
    b"\r\n", b"\n", b"\0", b"%00", b"@", b"\\", b"#", b" ", b"\t", b":", b"[", b"]", b"127.0.0.1", b"0x7f.1", b"[::1]",
    b"Host: inside.test\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close, host\r\n",
    b"denied.test", b"http://", b"\xff", b"\x16\x03\x01", b"\x05\x01\x00", b"Expect: 100-continue\r\n", b"HTTP/1.0",
]  # fmt: skip


def damaged(start: bytes, chance: random.Random) -> bytes:
    data = bytearray(start)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 3):
            case 0:
                data[at:at] = chance.choice(PIECES)
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at : at + 1] = bytes([chance.randint(0, 255)])
            case _:
                data[at:at] = data[chance.randint(0, at) : at]
    return bytes(data)


@pytest.mark.parametrize("seed", range(2))
async def test_a_damaged_conversation_is_never_a_fault_and_reaches_only_what_is_allowed(
    serving: Serving, origin: Origin, seed: int
) -> None:
    chance = random.Random(seed)
    port = origin.port
    post = get(port, extra="Transfer-Encoding: chunked\r\n").replace(b"GET", b"POST") + b"5\r\nhello\r\n0\r\n\r\n"
    plain = f"GET / HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n".encode()
    starts = [
        get(port), get(port) * 2, post, get(port, extra="Content-Length: 5\r\n") + b"hello",
        connect("origin.test", port) + plain, connect("origin.test", port) + hello_for(b"origin.test"),
        socks("origin.test", port) + plain, socks("origin.test", port) + hello_for(b"origin.test"),
        socks("127.0.0.1", port),
    ]  # fmt: skip
    samples = [damaged(chance.choice(starts), chance) for _ in range(SAMPLES)]
    async with serving(allowed=["origin.test"], ports=[port]) as running:

        async def one(sample: bytes) -> None:
            async with await anyio.connect_tcp("127.0.0.1", running.port) as client:
                await client.send(sample)
                await client.send_eof()
                await rest(client)

        with anyio.fail_after(2 * BOUND_SECONDS):
            for at in range(0, SAMPLES, AT_ONCE):
                async with anyio.create_task_group() as tasks:
                    for sample in samples[at : at + AT_ONCE]:
                        tasks.start_soon(one, sample)
        assert running.proxy.usage().connections == SAMPLES
    assert origin.seen
    # What follows a good ClientHello is between the client and the allowed host; this one reads a hello as a method.
    spoken = [seen for seen in origin.seen if "\x16" not in seen.method]
    assert {host for seen in spoken for host in seen.values("Host")} == {f"origin.test:{port}"}
