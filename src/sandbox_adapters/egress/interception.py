"""Interception: where TLS ends in the proxy, so that the operator's header fields can be added inside it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import anyio

from sandbox_adapters.egress.errors import Trouble, Unreachable
from sandbox_adapters.egress.hosts import host_text
from sandbox_adapters.egress.requests import Destination
from sandbox_adapters.egress.streams import TcpStream
from sandbox_adapters.egress.tls_stream import TlsStream

if TYPE_CHECKING:
    from sandbox_adapters.egress.authority import CertificateAuthority

HeaderInjector: TypeAlias = Callable[[str, int], Mapping[str, str]]
"""From a canonical host and a port to header fields that the operator adds to requests there.

The sandboxed code never sees them, unless the destination sends them back. A field replaces those of its name that
the client sent. Called for every request, after it was allowed; nothing of it is logged or shown in an error.
"""


class Interception:
    """Ends TLS to the hosts for which `inject_headers` has a field; TLS to any other host stays a blind tunnel.

    Args:
        authority: signs what the sandbox is shown instead of the host's own certificate.
        inject_headers: adds the fields to the requests inside.
        upstream: verifies the hosts; `verifying_context()` when not given.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        inject_headers: HeaderInjector,
        upstream: ssl.SSLContext | None = None,
    ) -> None:
        self._authority = authority
        self._upstream = upstream if upstream is not None else verifying_context()
        self.inject_headers = inject_headers

    def wants(self, destination: Destination) -> bool:
        """True when TLS to `destination` is to be ended here."""
        return bool(self.inject_headers(host_text(destination.host), destination.port))

    async def accept(self, client: TcpStream, destination: Destination, timeout_seconds: float) -> TlsStream:
        """Be `destination` for the client, whose hello comes next and names it. `client` stays the caller's.

        Raises anyio.BrokenResourceError when the client is gone, does not trust the certificate, or takes too long.
        """
        try:
            with anyio.fail_after(timeout_seconds):
                stream = TlsStream(client, await self._authority.context_in_turn(destination.host))
                await stream.handshake()
        except (ssl.SSLError, TimeoutError) as error:
            raise anyio.BrokenResourceError from error
        return stream

    async def connect(self, server: TcpStream, destination: Destination, timeout_seconds: float) -> TlsStream:
        """Begin TLS to `destination`, whose certificate must be valid for it. `server` becomes the stream's.

        Raises Unreachable.
        """
        stream = TlsStream(server, self._upstream, server_name=host_text(destination.host))
        try:
            with anyio.fail_after(timeout_seconds):
                await stream.handshake()
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(Trouble.CERTIFICATE) from error
        except (ssl.SSLError, anyio.BrokenResourceError) as error:
            raise Unreachable(Trouble.PROTOCOL) from error
        except TimeoutError as error:
            raise Unreachable(Trouble.TIMEOUT) from error
        return stream


def verifying_context() -> ssl.SSLContext:
    """Return the client's side: TLS 1.2 or later, the system's authorities, HTTP/1.1 alone.

    Takes tens of milliseconds, so it is made once. Not `ssl.create_default_context`, which writes the keys of every
    connection to a file when SSLKEYLOGFILE says so.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    return context
