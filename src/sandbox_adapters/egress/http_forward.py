"""One HTTP exchange: the request's body one way, the answer the other way, both streamed.

Every request gets a connection of its own, closed after the answer: no answer can be taken for another request's.
"""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.lowlevel
import h11

from sandbox_adapters.egress.errors import MalformedRequest, Trouble, Unreachable
from sandbox_adapters.egress.requests import MAX_FIELDS, Fields, end_to_end
from sandbox_adapters.egress.streams import ByteStream

_OURS = frozenset({b"proxy-status"})
"""Only the proxy itself says these, so that an answer of its own can be told from one of the destination."""


async def forward(
    client: ByteStream, client_wire: h11.Connection, server: ByteStream, request: h11.Request, *, max_head_bytes: int
) -> None:
    """Send `request` and the body that `client` sends, and give `client` the answer.

    The answer may come before the body has ended; the rest of the body is then not read. Raises Unreachable when no
    answer begins, and MalformedRequest for a body that is not well-formed, while the client can still be told. After
    the answer has begun, a failure resets the client's connection. Raises anyio.BrokenResourceError when the client
    is gone.
    """
    exchange = _Exchange(client, client_wire, server, max_head_bytes)
    await exchange.run(request)


class _Exchange:
    def __init__(
        self, client: ByteStream, client_wire: h11.Connection, server: ByteStream, max_head_bytes: int
    ) -> None:
        self._client = client
        self._client_wire = client_wire
        self._server = server
        self._server_wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_head_bytes)
        self._max_head_bytes = max_head_bytes
        self._failure: MalformedRequest | anyio.BrokenResourceError | None = None

    async def run(self, request: h11.Request) -> None:
        try:
            await self._server.send(self._server_wire.send(request))
        except anyio.BrokenResourceError:
            raise Unreachable(Trouble.PROTOCOL) from None
        answer: Unreachable | anyio.BrokenResourceError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._copy_body, tasks.cancel_scope)
            try:
                await self._copy_answer()
            except (Unreachable, anyio.BrokenResourceError) as error:
                answer = error
            tasks.cancel_scope.cancel()
        if self._failure is not None:
            self._server.abort()
            raise self._failure
        if answer is None:
            return
        if self._client_wire.our_state is not h11.SEND_RESPONSE:
            self._client_wire.send_failed()
            self._client.abort()
            return
        raise answer

    async def _copy_body(self, exchange: anyio.CancelScope) -> None:
        """Copy the request's body. A server that has stopped reading is no failure: it may still answer."""
        try:
            while True:
                event = await self._next_body_event()
                data = self._server_wire.send(event)
                try:
                    await self._server.send(data)
                except anyio.BrokenResourceError:
                    return
                if isinstance(event, h11.EndOfMessage):
                    return
        except (MalformedRequest, anyio.BrokenResourceError) as error:
            self._failure = error
            exchange.cancel()

    async def _next_body_event(self) -> h11.Data | h11.EndOfMessage:
        if self._client_wire.their_state is not h11.SEND_BODY:
            return h11.EndOfMessage()
        while True:
            event = None
            with suppress(h11.RemoteProtocolError):
                event = self._client_wire.next_event()
            if event is None:
                # Not chained, as in HttpFront: h11's errors keep what they were raised for.
                raise MalformedRequest("its body is not well-formed")
            if isinstance(event, h11.Data):
                return h11.Data(data=event.data)
            if isinstance(event, h11.EndOfMessage):
                return h11.EndOfMessage()  # trailers are not passed on
            self._client_wire.receive_data(await self._client.receive())

    async def _copy_answer(self) -> None:
        while True:
            event = None
            with suppress(h11.RemoteProtocolError, anyio.BrokenResourceError):
                event = self._server_wire.next_event()
                if event is h11.NEED_DATA:
                    self._server_wire.receive_data(await self._server.receive())
                    continue
            if event is None:
                raise Unreachable(Trouble.PROTOCOL)
            if isinstance(event, h11.InformationalResponse):
                await self._send_interim(event)
            elif isinstance(event, h11.Response):
                await self._client.send(self._client_wire.send(self._cleaned(event)))
            elif isinstance(event, h11.Data):
                await self._client.send(self._client_wire.send(h11.Data(data=event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._client.send(self._client_wire.send(h11.EndOfMessage()))
                return
            else:
                raise Unreachable(Trouble.PROTOCOL)

    async def _send_interim(self, event: h11.InformationalResponse) -> None:
        # A 101 never comes here: Upgrade is not passed on, and h11 takes no answer to what was not asked.
        if self._client_wire.their_http_version != b"1.1":
            await anyio.lowlevel.checkpoint()
            return
        fields = _answer_fields(list(event.headers.raw_items()))
        interim = h11.InformationalResponse(status_code=event.status_code, headers=fields, reason=event.reason)
        await self._client.send(self._client_wire.send(interim))

    def _cleaned(self, event: h11.Response) -> h11.Response:
        names = [name for name, _ in event.headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise Unreachable(Trouble.PROTOCOL)
        fields = list(event.headers.raw_items())
        if len(fields) > MAX_FIELDS or sum(len(name) + len(value) + 4 for name, value in fields) > self._max_head_bytes:
            raise Unreachable(Trouble.PROTOCOL)
        return h11.Response(status_code=event.status_code, headers=_answer_fields(fields), reason=event.reason)


def _answer_fields(fields: Fields) -> Fields:
    return [(name, value) for name, value in end_to_end(fields) if name.lower() not in _OURS]
