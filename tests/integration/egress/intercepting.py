"""A proxy that ends TLS for hosts with a secret, a program that trusts it, and an origin behind it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

from sandbox_adapters.egress import OperatorSecrets, Secret
from sandbox_adapters.egress.authority import CertificateAuthority
from sandbox_adapters.egress.interception import verifying_context
from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, Running
from tests.integration.egress.origins import Origin, scripted_origin
from tests.integration.egress.test_tunnels import open_tunnel

VALUE = "s3cret-value"
SENT = f"Bearer {VALUE}"
CLOSE = "Connection: close\r\n"


@dataclass(frozen=True)
class Setting:
    """What the proxy adds, and what a program inside trusts."""

    options: dict[str, Any]
    authority: CertificateAuthority

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.authority.pem)


def secret(*domains: str, **given: Any) -> Secret:
    return Secret("one", domains, **{"header": "Authorization", "value": SENT, **given})


def setting(certificate: Certificate | None, *secrets: Secret) -> Setting:
    secrets = secrets or (secret("origin.test"),)
    authority = CertificateAuthority.generate([entry for item in secrets for entry in item.entries])
    upstream = verifying_context()
    if certificate is not None:
        upstream.load_verify_locations(certificate.file)
    injection = OperatorSecrets(secrets, authority, upstream=upstream).for_principal(None)
    options = {"inject_headers": injection.inject_headers, "interception": injection.interception}
    return Setting(options, authority)


@asynccontextmanager
async def secured(
    running: Running,
    context: ssl.SSLContext,
    port: int,
    host: str = "origin.test",
    way: str = "connect",
    *,
    standard_compatible: bool = True,
) -> AsyncIterator[TLSStream]:
    async with (
        await open_tunnel(running, way, host, port) as stream,
        await TLSStream.wrap(
            stream, hostname=host, ssl_context=context, standard_compatible=standard_compatible
        ) as secure,
    ):
        yield secure


async def talk(secure: anyio.abc.ByteStream, *pieces: bytes) -> bytes:
    """Send `pieces`; everything that comes back, which must end as TLS does. A raw end raises."""
    got = b""
    for piece in pieces:
        await secure.send(piece)
    try:
        while True:
            got += await secure.receive()
    except anyio.EndOfStream:
        return got


async def ask(
    running: Running,
    context: ssl.SSLContext,
    port: int,
    *pieces: bytes,
    host: str = "origin.test",
    way: str = "connect",
) -> bytes:
    with anyio.fail_after(BOUND_SECONDS):
        async with secured(running, context, port, host, way) as secure:
            return await talk(secure, *pieces)


async def ask_blindly(running: Running, certificate: Certificate, origin: Origin, host: str) -> bool:
    """Ask through a blind tunnel; True when the origin itself answers."""
    with anyio.fail_after(BOUND_SECONDS):
        client = certificate.client
        async with secured(running, client, origin.port, host, standard_compatible=False) as secure:
            await secure.send(get(origin.port, host=host))
            return (await secure.receive()).startswith(b"HTTP/1.1 200")


def get(port: int, path: str = "/", extra: str = CLOSE, host: str = "origin.test") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{extra}\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def nothing_shows_it(running: Running, *answers: bytes) -> None:
    shown = b"".join(answers) + repr((running.proxy.denials(), running.proxy.usage())).encode()
    assert VALUE.encode() not in shown


@asynccontextmanager
async def tls_scripted(certificate: Certificate, reply: bytes, *, ends: bool = True) -> AsyncIterator[int]:
    """An HTTPS server that answers any head with `reply`; `ends`: and says so in TLS."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        try:
            secure = await TLSStream.wrap(stream, server_side=True, ssl_context=certificate.server)
            head = b""
            while b"\r\n\r\n" not in head:
                head += await secure.receive()
            await secure.send(reply)
            if ends:
                await secure.aclose()
            else:
                await stream.send_eof()
                await stream.receive()
        except ssl.SSLError as error:
            raise anyio.BrokenResourceError from error

    async with scripted_origin(handle) as port:
        yield port
