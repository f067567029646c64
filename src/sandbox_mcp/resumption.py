"""Older clients whose stream broke go on after Last-Event-ID: here, at another replica, or after a restart.

The SDK stores every message of a session in an EventStore and sends again what came after Last-Event-ID, but only where
the session is. Elsewhere, `ResumableSessions` answers such a GET itself, out of the same log, and follows it until the
answer to the request is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

import anyio
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCResponse, jsonrpc_message_adapter
from starlette.types import Receive, Scope, Send

from sandbox_adapters.logging import get_logger
from sandbox_adapters.message_log import Following, MessageLog, StreamName
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_mcp.caller import current_principal
from sandbox_mcp.http_errors import refuse
from sandbox_mcp.json_answers import AsAccepted

FOLLOW_SECONDS: Final = 900.0
"""How long a resumed stream waits for the answer at most: the replica that owes it may be gone."""

PING_SECONDS: Final = 15.0
MAX_FOLLOWERS: Final = 100

_LARGEST: Final = 2**64 - 1
"""In each half of a place in a stream of Redis, which refuses to look for what is beyond it."""

_EVENT_ID = re.compile(r"([0-9a-f]{32})/([0-9a-f]{32})/([0-9]{1,20}-[0-9]{1,20})")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client stopped: `session/stream/entry` on the wire."""

    session: str
    stream: str
    entry: str

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """Return the place that a Last-Event-ID names; None for what we never sent."""
        found = _EVENT_ID.fullmatch(text)
        if found is None or any(int(half) > _LARGEST for half in found[3].split("-")):
            return None
        return cls(*found.groups())

    def at(self, entry: str) -> str:
        """Return the event id of another message of the same stream."""
        return f"{self.session}/{self.stream}/{entry}"


class SessionEvents(EventStore):
    """The SDK's EventStore for one session of one caller.

    A log that is away costs the messages of that time their resumption, never the session.
    """

    def __init__(self, log: MessageLog, principal: str) -> None:
        self._log = log
        self._principal = principal
        self._session = secrets.token_hex(16)

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Keep a message; None is the mark that begins a stream."""
        stream = hashlib.sha256(stream_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        sent = None if message is None else message.model_dump(by_alias=True, mode="json", exclude_unset=True)
        kept = json.dumps({"v": 1, "stream": stream_id, "message": sent}).encode()
        try:
            entry = await self._log.append(StreamName(self._principal, self._session, stream), kept)
        except StoreUnavailable as error:
            _log.warning("A message cannot be resumed", problem=str(error))
            entry = "0-0"
        return Place(self._session, stream, "").at(entry)

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Send again what followed; return the stream to follow, None when it has its answer or is not known."""
        place = Place.parse(last_event_id)
        if place is None or place.session != self._session:
            return None
        stream: StreamId | None = None
        for entry, kept in await self._log.read_from(_name(self._principal, place), place.entry):
            document = json.loads(kept)
            stream = str(document["stream"])
            if entry == place.entry or document["message"] is None:
                continue
            message = jsonrpc_message_adapter.validate_python(document["message"])
            await send_callback(EventMessage(message, place.at(entry)))
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                return None
        return stream


class ResumableSessions(AsAccepted):
    """The SDK's sessions, with a log of what they sent that every replica can read."""

    def __init__(self, *, log: MessageLog, **options: Any) -> None:
        self._message_log = log
        self._followers = 0
        super().__init__(**options)

    @property
    def event_store(self) -> EventStore | None:  # read by the SDK once for each new session
        """A fresh store, of the caller that opens a session now."""
        return SessionEvents(self._message_log, current_principal())

    @event_store.setter
    def event_store(self, _: EventStore | None) -> None:
        """The SDK's constructor sets it; ours are made on demand."""

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a GET that resumes a session of another replica is answered here."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        place = Place.parse(headers.get(b"last-event-id", ""))
        session = headers.get(b"mcp-session-id", "")
        if scope["method"] != "GET" or place is None or not session or session in self._server_instances:
            await super().handle_request(scope, receive, send)
        elif self._followers >= MAX_FOLLOWERS:
            await refuse(send, 503, "server_full", "Too many streams are being resumed.")
        else:
            self._followers += 1
            try:
                await self._resume(place, session, scope, receive, send)
            finally:
                self._followers -= 1

    async def _resume(self, place: Place, session: str, scope: Scope, receive: Receive, send: Send) -> None:
        name = _name(current_principal(), place)
        try:
            known = await self._message_log.read_from(name, place.entry, limit=1)
        except StoreUnavailable:
            await refuse(send, 503, "store_unavailable", "The log of this stream cannot be read now.")
            return
        if not known:
            await super().handle_request(scope, receive, send)
            return
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"mcp-session-id", session.encode("latin-1")),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with anyio.create_task_group() as tasks:

            async def end_with_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_with_client)
            with anyio.move_on_after(FOLLOW_SECONDS):
                await self._follow(name, place, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()

    async def _follow(self, name: StreamName, place: Place, send: Send) -> None:
        """Send what follows, until the answer is among it."""
        try:
            async with self._message_log.following(name) as following:
                await self._send_what_comes(following, name, place, send)
        except StoreUnavailable:
            return  # the client comes again

    async def _send_what_comes(self, following: Following, name: StreamName, place: Place, send: Send) -> None:
        last = place.entry
        while True:
            following.mark()
            found = await self._message_log.read_from(name, last)
            for entry, kept in found:
                if entry == last:
                    continue
                last = entry
                message = json.loads(kept)["message"]
                if message is None:
                    continue
                event = f"event: message\r\nid: {place.at(entry)}\r\ndata: {json.dumps(message)}\r\n\r\n"
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
                if "method" not in message:
                    return
            with anyio.move_on_after(PING_SECONDS) as quiet:
                await following.wait()
            if quiet.cancelled_caught:
                await send({"type": "http.response.body", "body": b": ping\r\n\r\n", "more_body": True})


def _name(principal: str, place: Place) -> StreamName:
    return StreamName(principal, place.session, place.stream)
