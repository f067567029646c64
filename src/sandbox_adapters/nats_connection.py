"""NatsConnection: one process's way to NATS.

nats-py works under asyncio only, so all of this does. It is given no URL with a password in it, and nothing here shows
one: errors and logs name the servers by host and port.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from sandbox_adapters.background import Background
from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.notices import Notices
from sandbox_adapters.outage_reasons import reason_of
from sandbox_core.domain.errors import StoreUnavailable

_log = logging.getLogger("sandbox_adapters.nats")

PING_SECONDS: Final = 10
"""A server that answered no ping for two of these is taken for gone; an answer is waited for much shorter anyway."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_CLOSING_SECONDS: Final = 2.0
_REFUSED: Final = ("authorization violation", "authentication")


class NobodyAnswers(StoreUnavailable):
    """NATS is there, and nobody listens to the subject: no such stream, or JetStream is off."""


class NatsConnection(Background):
    """Requests and notices of one process. Enter it before use; leaving closes the connection.

    Entering connects. NATS being away is no error then: a warning is logged, and every call waits `timeout_seconds` at
    most and raises StoreUnavailable until it is back. A refused user or password is an error.
    """

    def __init__(self, options: NatsOptions) -> None:
        super().__init__(self._keep)
        self.options = options
        self.address = options.address
        self.asked = 0
        """How many requests were made."""
        self.failed = 0
        """How often NATS was away, or refused."""
        self._client: Client | None = None
        self._up = anyio.Event()
        self._listeners: set[MemoryObjectSendStream[None]] = set()
        self._attempts: set[anyio.CancelScope] = set()
        self._first = anyio.Event()
        self._problem = "has not answered yet"
        self._is_refused = False

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("NATS works under asyncio only, and this program runs another event loop") from None
        await super().__aenter__()
        with anyio.move_on_after(self.options.timeout_seconds):
            await self._first.wait()
        if self._is_refused:
            await self.__aexit__(None, None, None)
            raise self._unavailable()
        return self

    async def request(
        self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request and return the answer, a JSON object. Raises StoreUnavailable, NobodyAnswers.

        It is sent again over the next connection when one is lost before the answer: let it bear a repetition.
        """
        self.asked += 1
        try:
            return await self._request(subject, payload, headers)
        except StoreUnavailable:
            self.failed += 1
            raise

    async def _request(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> dict[str, Any]:
        seconds = self.options.timeout_seconds
        try:
            with anyio.fail_after(seconds):
                document = json.loads(await self._ask(subject, payload, headers))
        except NoRespondersError as error:
            raise NobodyAnswers(f"NATS at {self.address} has JetStream off, or not for this user") from error
        except TimeoutError as error:
            if self._client is None:
                raise self._unavailable() from error
            raise StoreUnavailable(f"NATS at {self.address} did not answer within {seconds:g} s") from error
        except (NatsError, OSError, ValueError) as error:
            raise StoreUnavailable(f"NATS at {self.address} cannot be asked ({type(error).__name__})") from error
        if not isinstance(document, dict):
            raise StoreUnavailable(f"NATS at {self.address} answered something else than JetStream does")
        return document

    async def tell(self, subject: str) -> None:
        """Publish a notice without content, to whoever listens now. Nothing is said when NATS is away."""
        client = self._client
        if client is not None:
            with suppress(NatsError, OSError):
                await client.publish(subject)

    @asynccontextmanager
    async def listening(self, subjects: Mapping[str, str]) -> AsyncIterator[Notices]:
        """Listen to subjects, each with the name of its group ("": to all that comes). Raises StoreUnavailable."""
        try:
            with anyio.fail_after(self.options.timeout_seconds):
                client = await self._connected()
        except TimeoutError as error:
            raise self._unavailable() from error
        send, receive = anyio.create_memory_object_stream[None](1)
        self._listeners.add(send)
        subscriptions = []

        async def notice(_: Msg) -> None:
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                send.send_nowait(None)

        try:
            for subject, group in subjects.items():
                subscriptions.append(await client.subscribe(subject, queue=group, cb=notice))
            yield Notices(receive, self.lost)
        except (NatsError, OSError) as error:
            raise self._unavailable() from error
        finally:
            self._listeners.discard(send)
            for subscription in subscriptions:
                with suppress(NatsError, OSError):
                    await subscription.unsubscribe()
            send.close()
            receive.close()

    @property
    def server_version(self) -> tuple[int, int, int]:
        """What the server says it is; zeros while there is none."""
        if self._client is None:
            return (0, 0, 0)
        version = self._client.connected_server_version
        return (version.major, version.minor, version.patch)

    def lost(self) -> StoreUnavailable:
        """Return the error that says why there is no connection."""
        return self._unavailable()

    async def _ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes:
        given = None if headers is None else dict(headers)
        while True:
            client = await self._connected()
            with anyio.CancelScope() as attempt:
                self._attempts.add(attempt)
                try:
                    answer = await client.request(subject, payload, 2 * self.options.timeout_seconds, headers=given)
                    return answer.data
                finally:
                    self._attempts.discard(attempt)

    async def _connected(self) -> Client:
        while self._client is None:
            if self._tasks is None:
                raise StoreUnavailable(f"the connection to NATS at {self.address} is closed")
            await self._up.wait()
        return self._client

    async def _keep(self) -> None:
        """Connect, and connect anew whenever the connection is gone. One client of nats-py is one connection."""
        pause, is_told = 0.0, False
        while True:
            gone = anyio.Event()
            client = _Client(needs_tls=self.options.wants_tls)
            try:
                if await self._connect(client, gone):
                    _log.info("NATS connected (%s)", self.address)
                    is_told = False
                    self._client, since = client, time.monotonic()
                    self._up.set()
                    self._first.set()
                    await gone.wait()
                    self._problem = "closed the connection"
                    pause = pause if time.monotonic() - since < _LONGEST_PAUSE else 0.0
            finally:
                self._client = None
                if self._up.is_set():
                    self._up = anyio.Event()
                for listener in self._listeners:
                    listener.close()
                for attempt in self._attempts:
                    attempt.cancel()
                with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING_SECONDS), suppress(Exception):
                    await client.close()
            if not is_told:
                _log.warning("NATS at %s %s", self.address, self._problem)
                is_told = True
            self._first.set()
            pause = min(max(_SHORTEST_PAUSE, pause * 2), _LONGEST_PAUSE)
            await anyio.sleep(pause)

    async def _connect(self, client: Client, gone: anyio.Event) -> bool:
        said: list[BaseException] = []

        async def note(error: Exception) -> None:
            said.append(error)
            if "permissions" in str(error).lower():
                _log.warning("NATS at %s does not permit its user what is needed: %s", self.address, error)

        async def closed() -> None:
            gone.set()

        user, password = self.options.credentials
        seconds = self.options.timeout_seconds
        try:
            with anyio.fail_after(seconds):
                await client.connect(
                    self.options.servers,
                    user=user if password is not None else None,
                    password=password,
                    token=user if password is None else None,
                    name="sandbox",
                    tls=self.options.tls_context(),
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, round(seconds)),
                    ping_interval=PING_SECONDS,
                    error_cb=note,
                    closed_cb=closed,
                )
        except TimeoutError:
            self._problem = f"cannot be reached within {seconds:g} s"
        except (NatsError, OSError, ValueError) as error:
            said.append(error)
            self._problem = _problem(said)
        else:
            self._is_refused = False
            return True
        self._is_refused = self._problem.startswith("refuses")
        return False

    def _unavailable(self) -> StoreUnavailable:
        return StoreUnavailable(f"NATS at {self.address} {self._problem}")


class _Client(Client):
    """A client that says who it is over TLS only, when TLS is asked for.

    nats-py follows the server's first words: a `tls://` URL alone would let somebody between have the password.
    """

    def __init__(self, *, needs_tls: bool) -> None:
        super().__init__()
        self._needs_tls = needs_tls

    def _connect_command(self) -> bytes:
        if self._needs_tls and not self._server_info.get("tls_required"):
            raise NoTlsOffered
        return super()._connect_command()


class NoTlsOffered(NatsError):
    """The URL asks for TLS, and the server has none."""

    def __str__(self) -> str:
        """Say it."""
        return "has no TLS, which the URL asks for"


def _problem(said: list[BaseException]) -> str:
    """Return what went wrong, in words that show no secret: the server's own are not repeated."""
    for error in said:
        if isinstance(error, NoTlsOffered):
            return str(error)
        if any(word in str(error).lower() for word in _REFUSED):
            return "refuses the user or the password of its URL, or wants one"
    return f"cannot be reached ({reason_of(said)})"
