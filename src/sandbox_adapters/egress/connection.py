"""One accepted connection, from its first byte to its end."""

from __future__ import annotations

import anyio

from sandbox_adapters.egress import socks
from sandbox_adapters.egress.errors import EgressFailure, Refused
from sandbox_adapters.egress.gate import Gate
from sandbox_adapters.egress.http_front import HttpFront
from sandbox_adapters.egress.interception import HeaderInjector, Interception
from sandbox_adapters.egress.requests import Destination
from sandbox_adapters.egress.streams import TcpStream, discard_input, relay
from sandbox_adapters.egress.tls_hello import ALERT_ACCESS_DENIED, MAX_HELLO_BYTES
from sandbox_adapters.egress.tunnel import Inside, inspect
from sandbox_adapters.egress.values import EgressLimits

_ALERT_SECONDS = 1.0
_SOCKS4 = 4
_SOCKS4_REJECTED = bytes([0, 91, 0, 0, 0, 0, 0, 0])


class Connection:
    """Tells HTTP from SOCKS by the first byte and serves either. `client` stays owned by the caller."""

    def __init__(
        self,
        client: TcpStream,
        gate: Gate,
        limits: EgressLimits,
        inject_headers: HeaderInjector | None = None,
        interception: Interception | None = None,
    ) -> None:
        self._client = client
        self._gate = gate
        self._limits = limits
        self._inject = inject_headers
        self._interception = interception

    async def serve(self) -> None:
        """Serve until the connection ends. Raises anyio.BrokenResourceError when the client is gone."""
        first = await self._client.receive()
        self._client.push_back(first)
        if first[:1] == bytes([socks.VERSION]):
            await self._serve_socks()
        elif first[:1] == bytes([_SOCKS4]):
            await self._client.send(_SOCKS4_REJECTED)
        elif first:
            await self._serve_http()

    async def _serve_http(self) -> None:
        front = HttpFront(self._client, self._gate, self._limits, self._inject)
        destination = await front.serve()
        if destination is None:
            return
        try:
            server = await self._gate.dial(destination, self._client.activity)
        except EgressFailure as failure:
            await front.refuse(failure)
            return
        with server:
            await front.accept_tunnel()
            await self._run_tunnel(destination, server)

    async def _serve_socks(self) -> None:
        try:
            with anyio.fail_after(self._limits.handshake_timeout_seconds):
                destination = await socks.read_request(self._client)
            if destination is None:
                return
            self._gate.admit(destination)
            server = await self._gate.dial(destination, self._client.activity)
        except TimeoutError:
            return
        except EgressFailure as failure:
            if isinstance(failure, Refused):
                self._gate.record(failure)
            await self._client.send(socks.reply(failure))
            return
        with server:
            await self._client.send(socks.reply(None))
            await self._run_tunnel(destination, server)

    async def _run_tunnel(self, destination: Destination, server: TcpStream) -> None:
        try:
            inside = await inspect(
                self._client, destination, self._gate.rules, timeout_seconds=self._limits.handshake_timeout_seconds
            )
        except Refused as refused:
            self._gate.record(refused)
            if refused.decision.rule.startswith("protocol"):
                return
            await self._client.send(ALERT_ACCESS_DENIED)
            await discard_input(self._client, max_bytes=MAX_HELLO_BYTES, seconds=_ALERT_SECONDS)
            return
        if inside is Inside.TLS and self._interception is not None and self._interception.wants(destination):
            server.close()
            await self._intercept(destination, self._interception)
        elif inside in (Inside.TLS, Inside.RAW):
            await relay(self._client, server)
        elif inside is Inside.HTTP:
            # Each request in it is decided, and dialled, for itself.
            server.close()
            front = HttpFront(self._client, self._gate, self._limits, self._inject, tunnel=destination)
            await front.serve()

    async def _intercept(self, destination: Destination, interception: Interception) -> None:
        """Be the server of the client's TLS, and serve the requests in it one by one, each over TLS of its own."""
        try:
            client = await interception.accept(self._client, destination, self._limits.handshake_timeout_seconds)
        except anyio.BrokenResourceError:
            return
        front = HttpFront(
            client, self._gate, self._limits, interception.inject_headers, tunnel=destination, secure=interception
        )
        await front.serve()
