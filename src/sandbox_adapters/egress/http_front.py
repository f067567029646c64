"""HttpFront: the HTTP side that faces the sandbox. Reads requests, decides each one, answers or passes on."""

from __future__ import annotations

from contextlib import suppress

import anyio
import h11

from sandbox_adapters.egress.errors import EgressFailure, MalformedRequest, Refused, Trouble, Unreachable
from sandbox_adapters.egress.gate import Gate
from sandbox_adapters.egress.hosts import host_text
from sandbox_adapters.egress.http_forward import forward
from sandbox_adapters.egress.interception import HeaderInjector, Interception
from sandbox_adapters.egress.replies import reply_to
from sandbox_adapters.egress.requests import (
    HTTP_PORT,
    HTTPS_PORT,
    Destination,
    Fields,
    check_head,
    forwarded_fields,
    may_be_injected,
    read_connect,
    read_forward,
)
from sandbox_adapters.egress.streams import ByteStream, discard_input
from sandbox_adapters.egress.values import EgressLimits

_LAST_WORDS_BYTES = 1 << 20
_LAST_WORDS_SECONDS = 2.0


class HttpFront:
    """Serves one client connection.

    Args:
        client: stays owned by the caller, who closes it after `serve`.
        inject_headers: for the requests of this connection.
        tunnel: where a CONNECT or SOCKS connection leads, when this speaks HTTP inside one.
        secure: `client` is the inside of TLS that the proxy ends itself, and this begins TLS to the destination.
    """

    def __init__(
        self,
        client: ByteStream,
        gate: Gate,
        limits: EgressLimits,
        inject_headers: HeaderInjector | None = None,
        *,
        tunnel: Destination | None = None,
        secure: Interception | None = None,
    ) -> None:
        self._client = client
        self._gate = gate
        self._limits = limits
        self._inject = inject_headers
        self._tunnel = tunnel
        self._secure = secure
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_head_bytes)
        self._request_method = b""

    async def serve(self) -> Destination | None:
        """Serve requests until the connection ends, or until a CONNECT was allowed: then return where it leads.

        The client's next bytes are then for the tunnel, and it still waits for the reply to its CONNECT. Raises
        anyio.BrokenResourceError when the client is gone.
        """
        while True:
            try:
                request = await self._next_request()
                if request is None:
                    return None
                if request.method == b"CONNECT":
                    return self._connect(request)
                await self._pass_on(request)
            except EgressFailure as failure:
                if not await self.refuse(failure):
                    return None
            if not await self._start_next_cycle():
                return None

    async def accept_tunnel(self) -> None:
        """Tell the client that its CONNECT has succeeded."""
        reply = h11.Response(status_code=200, reason=b"Connection established", headers=[])
        await self._client.send(self._wire.send(reply))
        self._client.push_back(self._wire.trailing_data[0])

    async def refuse(self, failure: EgressFailure) -> bool:
        """Answer with why not, and record a refusal. Returns whether the connection can go on."""
        if isinstance(failure, Refused):
            self._gate.record(failure)
        if self._wire.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._client.abort()
            return False
        reply = reply_to(failure)
        # Going on is simple only where the whole request has been read; anything else ends here.
        goes_on = self._wire.their_state is h11.DONE
        fields = reply.fields if goes_on else [*reply.fields, (b"Connection", b"close")]
        head = self._wire.send(h11.Response(status_code=reply.status, reason=reply.reason, headers=fields))
        body = b"" if self._request_method == b"HEAD" else self._wire.send(h11.Data(data=reply.body))
        await self._client.send(head + body + self._wire.send(h11.EndOfMessage()))
        if not goes_on:
            await discard_input(self._client, max_bytes=_LAST_WORDS_BYTES, seconds=_LAST_WORDS_SECONDS)
        return goes_on

    async def _next_request(self) -> h11.Request | None:
        self._request_method = b""
        if not self._wire.trailing_data[0]:
            # Waiting for a request to begin is bounded by the idle timeout, finishing its head by the next one.
            first = await self._client.receive()
            if not first:
                return None
            self._wire.receive_data(first)
        try:
            with anyio.fail_after(self._limits.handshake_timeout_seconds):
                event = await self._event_in_turn()
                while not isinstance(event, h11.Request):
                    if event is not h11.NEED_DATA:
                        return None
                    self._wire.receive_data(await self._client.receive())
                    event = await self._event_in_turn()
        except TimeoutError as error:
            raise MalformedRequest("its head did not arrive in time", status=408) from error
        self._request_method = event.method
        check_head(event, self._limits.max_head_bytes)
        return event

    async def _event_in_turn(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event, after a turn for all other tasks since the last one of any connection."""
        async with self._gate.turn:
            return self._next_event()

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        with suppress(h11.RemoteProtocolError):
            return self._wire.next_event()
        # Not chained: h11's error keeps all lines of the head, megabytes, until the client has taken its answer.
        raise MalformedRequest("it is not HTTP, or has two readings")

    def _connect(self, request: h11.Request) -> Destination:
        if self._tunnel is not None:
            raise MalformedRequest("CONNECT inside a tunnel")
        destination = read_connect(request)
        self._gate.admit(destination)
        return destination

    async def _pass_on(self, request: h11.Request) -> None:
        if self._secure is not None and request.target[:1] not in (b"/", b"*"):
            raise MalformedRequest("inside TLS the address is a path")
        wanted = read_forward(request, self._tunnel)
        self._read_empty_body(request)
        self._gate.admit(wanted.destination, plain_http=self._secure is None)
        try:
            fields = forwarded_fields(
                request,
                wanted.destination,
                self._injected(wanted.destination),
                default_port=HTTP_PORT if self._secure is None else HTTPS_PORT,
            )
            outgoing = h11.Request(method=request.method, target=wanted.target, headers=fields)
        except (UnicodeError, h11.LocalProtocolError):
            # Not chained: these errors show the field, which is a secret.
            raise Unreachable(Trouble.INJECTION) from None
        with await self._dial(wanted.destination) as server:
            await forward(self._client, self._wire, server, outgoing, max_head_bytes=self._limits.max_head_bytes)

    async def _dial(self, destination: Destination) -> ByteStream:
        server = await self._gate.dial(destination, self._client.activity)
        if self._secure is None:
            return server
        try:
            return await self._secure.connect(server, destination, self._limits.handshake_timeout_seconds)
        except BaseException:
            server.close()
            raise

    def _read_empty_body(self, request: h11.Request) -> None:
        """Take the end of a request without a body, so that a refusal can leave the connection open."""
        framed = {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}
        if not framed:
            self._wire.next_event()

    def _injected(self, destination: Destination) -> Fields:
        if self._inject is None:
            return []
        fields = [
            (name.encode("ascii"), value.encode("latin-1"))
            for name, value in self._inject(host_text(destination.host), destination.port).items()
        ]
        if not all(may_be_injected(name) for name, _ in fields):
            raise Unreachable(Trouble.INJECTION)
        return fields

    async def _start_next_cycle(self) -> bool:
        if self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE:
            self._wire.start_next_cycle()
            return True
        if self._wire.our_state is not h11.ERROR:
            await discard_input(self._client, max_bytes=_LAST_WORDS_BYTES, seconds=_LAST_WORDS_SECONDS)
        return False
