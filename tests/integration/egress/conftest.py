"""A proxy on loopback in front of servers on loopback. Names under `.test` lead to 127.0.0.1."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandbox_adapters.egress import AddressPolicy, EgressProxy, EgressRules
from sandbox_adapters.egress.hosts import IpAddress
from tests.integration.egress.origins import Origin, http_origin

BOUND_SECONDS = 30
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "inside.test": ["10.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "mixed.test": ["10.0.0.1", "127.0.0.1"],
    "fallback.test": ["127.0.0.66", "127.0.0.1"],
    "nowhere.test": [],
}


async def lookup(name: str, port: int) -> list[IpAddress]:
    """Stands for DNS: nothing here asks a name server."""
    addresses = ELSEWHERE.get(name, ["127.0.0.1"] if name.endswith(".test") else [])
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return [ip_address(text) for text in addresses]


@dataclass
class Running:
    """A proxy that is being served."""

    proxy: EgressProxy
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def talk(self, *pieces: bytes) -> bytes:
        """Send `pieces`, each on its own, and return everything that comes back until the end."""
        answer = b""
        with anyio.fail_after(BOUND_SECONDS):
            async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
                try:
                    for piece in pieces:
                        await stream.send(piece)
                    while True:
                        answer += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return answer

    def rules_denied(self) -> list[str]:
        return [denial.rule for denial in self.proxy.denials()]


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serving() -> Serving:
    """Make a running proxy: `async with serving(ports=...) as running`. It must end without a fault of its own."""

    @asynccontextmanager
    async def serve(
        *,
        allowed: Sequence[str] = ("*.test", "127.0.0.1"),
        denied: Sequence[str] = ("denied.test",),
        ports: Sequence[int] = (),
        tls_ports: Sequence[int] = (),
        raw_ports: Sequence[int] = (),
        addresses: AddressPolicy | None = None,
        faults: int = 0,
        **options: Any,
    ) -> AsyncIterator[Running]:
        rules = EgressRules(
            tuple(allowed),
            tuple(denied),
            ports=frozenset((*ports, *tls_ports)),
            tls_ports=frozenset(tls_ports),
            raw_ports=frozenset(raw_ports),
        )
        options.setdefault("lookup", lookup)
        addresses = addresses or AddressPolicy(loopback_reachable_for_tests=True)
        proxy = EgressProxy(rules, addresses=addresses, **options)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        async with anyio.create_task_group() as tasks:
            await tasks.start(proxy.serve, listener)
            yield Running(proxy, listener.getsockname()[1])
            with anyio.fail_after(BOUND_SECONDS):
                await proxy.aclose()
        assert proxy.open_connections == 0
        assert proxy.usage().faults == faults

    return serve


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A plain HTTP server."""
    with http_origin() as running:
        yield running


@dataclass(frozen=True)
class Certificate:
    """A self-made certificate for the names under `.test`, good as its own authority."""

    file: Path
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin.test")])
    names = [x509.DNSName(text) for text in ("origin.test", "other.test", "denied.test")]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    file, key_file = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key_file)
    return Certificate(file, server, ssl.create_default_context(cafile=str(file)))


@pytest.fixture
def tls_origin(certificate: Certificate) -> Iterator[Origin]:
    """An HTTPS server for `origin.test` and `other.test`."""
    with http_origin(certificate.server) as running:
        yield running
