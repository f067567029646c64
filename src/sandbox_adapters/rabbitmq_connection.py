"""RabbitConnection: one process's way to RabbitMQ.

aio-pika works under asyncio only, so all of this does. When the connection is gone, everything is made anew: aio-pika's
own "robust" connection restores channels behind the back of what waits on them. Nothing here shows the URL or a
password: errors and logs name the broker by host, port and virtual host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self, TypeVar

import aio_pika
import anyio
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    DeliveryError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused
from anyio.streams.memory import MemoryObjectSendStream

from sandbox_adapters.background import Background
from sandbox_adapters.notices import Notices
from sandbox_adapters.outage_reasons import reason_of
from sandbox_adapters.rabbitmq_client import NO_PERMISSION, close, is_blocked
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_core.domain.errors import StoreUnavailable

_log = logging.getLogger("sandbox_adapters.rabbitmq")

HEARTBEAT_SECONDS: Final = 4
"""A peer that was silent for two or three of these is taken for gone, and what it was handed goes to others."""

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_DELIVERIES: Final = 1_000_000_000
"""Never: an item that was handed out often was refused often, since its principal has no place. RabbitMQ 4 says 20."""

_BELLS: Final = 64
"""Notices that wait at most: each wakes one taker, and whoever takes wakes the next when more waits."""

_UNHEARD_MS: Final = 60_000
"""The queue of notices of a set of labels goes when nobody has listened for so long."""

_Answer = TypeVar("_Answer")
_FAILURES: Final = (AMQPError, ChannelInvalidStateError, OSError, RuntimeError)


class NoAnswer(StoreUnavailable):
    """What was asked for was not done in time. It may be one queue only that does not answer."""


@dataclass(eq=False, slots=True)
class _Session:
    """What lives as long as one connection."""

    connection: AbstractConnection
    puts: AbstractChannel
    takes: AbstractChannel
    queues: Mapping[str, AbstractQueue]
    labelled: AbstractExchange
    gone: anyio.Event = field(default_factory=anyio.Event)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message that this process was handed, until it is acknowledged, given back, or its connection is gone."""

    message_id: str
    body: bytes
    message: AbstractIncomingMessage
    session: _Session


class RabbitConnection(Background):
    """Queues of one process. Enter it before use; leaving closes the connection.

    Entering connects and declares every queue. RabbitMQ being away is no error then: a warning is logged, and every
    call waits `timeout_seconds` at most and raises StoreUnavailable until it is back. A refused password is an error,
    and so are permissions that do not allow to declare them.

    Args:
        buckets: how many quorum queues there are, named `{base}.0` and so on; all processes must say the same.
    """

    def __init__(self, options: RabbitOptions, *, buckets: int) -> None:
        super().__init__(self._keep)
        self.options = options
        self.address = options.address
        self.buckets = buckets
        self.plain = f"{options.base}.bell"
        self.labelled = f"{options.base}.bell.labels"
        self._nowhere = f"{options.base}.nowhere"
        self._session: _Session | None = None
        self._up = anyio.Event()
        self._first = anyio.Event()
        self._problem = "has not answered yet"
        self._is_refused = False
        self._listeners: set[MemoryObjectSendStream[None]] = set()
        self.asked = 0
        """How often RabbitMQ was asked for something."""
        self.failed = 0
        """How often it was away, or did not answer."""

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("RabbitMQ works under asyncio only, and this program runs another event loop") from None
        await super().__aenter__()
        with anyio.move_on_after(self.options.timeout_seconds):
            await self._first.wait()
        if self._is_refused:
            await self.__aexit__(None, None, None)
            raise self.lost()
        return self

    def check(self) -> None:
        """Raise StoreUnavailable when there is no connection now."""
        if self._session is None:
            raise self.lost()

    async def ready(self) -> None:
        """Return when there is a connection. Raises StoreUnavailable when there is none within the timeout."""
        with anyio.move_on_after(self.options.timeout_seconds):
            while self._session is None:
                if self._tasks is None:
                    raise StoreUnavailable(f"the connection to RabbitMQ at {self.address} is closed")
                await self._up.wait()
        try:
            self.check()
        except StoreUnavailable:
            self.failed += 1
            raise

    async def put(self, bucket: int, message_id: str, body: bytes) -> None:
        """Store a message; returns when a majority of the brokers has it on disk. Raises StoreUnavailable."""
        message = aio_pika.Message(body, message_id=message_id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)

        async def publish(session: _Session) -> None:
            await session.puts.default_exchange.publish(message, self._name(bucket), mandatory=True)

        await self._do(publish)

    async def check_rights(self) -> None:
        """Put nothing anywhere. Raises StoreUnavailable when the user may not put."""

        async def publish(session: _Session) -> None:
            await session.puts.default_exchange.publish(aio_pika.Message(b""), self._nowhere, mandatory=False)

        await self._do(publish)

    async def fetch(self, bucket: int) -> Fetched | None:
        """Return the first message that nobody has; None when there is none. Whole even when cancelled."""

        async def get(session: _Session) -> Fetched | None:
            message = await session.queues[self._name(bucket)].get(fail=False, timeout=None)
            if message is None:
                return None
            return Fetched(message.message_id or "", message.body, message, session)

        return await self._do(get)

    async def acknowledge(self, fetched: Fetched) -> None:
        """Forget the message. Raises StoreUnavailable when its connection is gone: then it is handed out again."""
        await self._settle(fetched, fetched.message.ack)

    async def give_back(self, fetched: Fetched) -> None:
        """Put the message back at the head. No error when its connection is gone: RabbitMQ has done it then."""
        with suppress(StoreUnavailable):
            await self._settle(fetched, fetched.message.nack)

    async def tell(self, subject: str) -> None:
        """Ring a bell: `plain` for one idle taker, `labelled` for one of each kind. No error when RabbitMQ is away."""
        message = aio_pika.Message(b"", delivery_mode=aio_pika.DeliveryMode.NOT_PERSISTENT)

        async def ring(session: _Session) -> None:
            if subject == self.labelled:
                await session.labelled.publish(message, "", mandatory=False)
            else:
                await session.takes.default_exchange.publish(message, subject, mandatory=False)

        with suppress(StoreUnavailable):
            self.check()
            await self._do(ring)

    @asynccontextmanager
    async def listening(self, subjects: Mapping[str, str]) -> AsyncIterator[Notices]:
        """Hear bells, each with the name of the group that shares it. Raises StoreUnavailable."""
        send, receive = anyio.create_memory_object_stream[None](1)
        self._listeners.add(send)
        consumers: list[tuple[AbstractQueue, str, _Session]] = []

        async def heard(message: AbstractIncomingMessage) -> None:
            with suppress(anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                send.send_nowait(None)
            with suppress(*_FAILURES):
                await message.ack()

        async def consume(session: _Session, subject: str, group: str) -> None:
            queue = session.queues.get(subject)
            if queue is None:
                queue = await session.takes.declare_queue(
                    f"{self.plain}.{group}",
                    durable=True,
                    arguments={"x-max-length": _BELLS, "x-expires": _UNHEARD_MS},
                )
                await queue.bind(session.labelled)
            consumers.append((queue, await queue.consume(heard), session))

        try:
            for subject, group in subjects.items():
                await self._do(partial(consume, subject=subject, group=group))
            yield Notices(receive, self.lost)
        finally:
            self._listeners.discard(send)
            with anyio.CancelScope(shield=True):
                for queue, tag, session in consumers:
                    if session is self._session:
                        with suppress(StoreUnavailable):
                            await self._do(partial(_cancel, queue=queue, tag=tag))
            send.close()
            receive.close()

    def lost(self) -> StoreUnavailable:
        """Return the error that says why there is no connection."""
        return StoreUnavailable(f"RabbitMQ at {self.address} {self._problem}")

    async def server_version(self) -> str:
        """Return what the broker says it is."""

        async def ask(session: _Session) -> str:
            transport = session.connection.transport
            properties = transport.connection.server_properties if transport is not None else {}
            return str(properties.get("version", "?"))

        return await self._do(ask)

    def _name(self, bucket: int) -> str:
        return f"{self.options.base}.{bucket}"

    async def _settle(self, fetched: Fetched, how: Callable[[], Awaitable[Any]]) -> None:
        if fetched.session is not self._session:
            raise self.lost()
        await self._do(lambda _: how())

    async def _do(self, call: Callable[[_Session], Awaitable[_Answer]]) -> _Answer:
        """Do something with the connection, whole even when cancelled, and within the timeout.

        Raises NoAnswer when it takes longer: then the connection is taken for broken, and everything is made anew. With
        another error so it is when RabbitMQ is short of memory or disk: it then reads nothing more from a connection
        that has put, and serves one that has not.
        """
        self.asked += 1
        await self.ready()
        try:
            return await self._answer(call)
        except StoreUnavailable:
            self.failed += 1
            raise

    async def _answer(self, call: Callable[[_Session], Awaitable[_Answer]]) -> _Answer:
        seconds = self.options.timeout_seconds
        session = self._session
        if session is None:
            raise self.lost()
        try:
            with anyio.fail_after(seconds, shield=True):
                return await call(session)
        except TimeoutError as error:
            is_short = await is_blocked(session.connection)
            session.gone.set()
            if is_short:
                raise StoreUnavailable(
                    f"RabbitMQ at {self.address} is short of memory or disk, and takes no more"
                ) from error
            raise NoAnswer(f"RabbitMQ at {self.address} did not answer within {seconds:g} s") from error
        except DeliveryError as error:
            session.gone.set()
            raise StoreUnavailable(f"RabbitMQ at {self.address} did not take what was put") from error
        except asyncio.CancelledError as error:
            # aiormq cancels what waits for an answer when its connection goes.
            task = asyncio.current_task()
            if task is None or task.cancelling() or not session.gone.is_set():
                raise
            raise self.lost() from error
        except ChannelAccessRefused as error:
            session.gone.set()
            raise StoreUnavailable(f"RabbitMQ at {self.address} {NO_PERMISSION}") from error
        except _FAILURES as error:
            session.gone.set()
            raise StoreUnavailable(f"RabbitMQ at {self.address} cannot be asked ({type(error).__name__})") from error

    async def _keep(self) -> None:
        """Connect, and connect anew whenever the connection is gone."""
        pause, is_told = 0.0, False
        while True:
            session = await self._connect()
            if session is not None:
                _log.info("RabbitMQ connected (%s)", self.address)
                pause, is_told = 0.0, False
                try:
                    self._session = session
                    self._up.set()
                    self._first.set()
                    await session.gone.wait()
                finally:
                    self._session, self._up = None, anyio.Event()
                    self._problem = "closed the connection, or did not answer"
                    for listener in self._listeners:
                        listener.close()
                    await close(session.connection)
            if not is_told:
                _log.warning("RabbitMQ at %s %s", self.address, self._problem)
                is_told = True
            self._first.set()
            pause = min(max(_SHORTEST_PAUSE, pause * 2), _LONGEST_PAUSE)
            await anyio.sleep(pause)

    async def _connect(self) -> _Session | None:
        """Return everything made anew; None, and `_problem` says why, when that cannot be."""
        options, seconds = self.options, self.options.timeout_seconds
        connection: AbstractConnection | None = None
        try:
            # Declaring takes its time after a restart, while queues choose their leaders.
            with anyio.fail_after(seconds * 5):
                connection = await aio_pika.connect(
                    host=options.host,
                    port=options.port,
                    login=options.user,
                    password=options.password,
                    virtualhost=options.virtual_host,
                    ssl=options.wants_tls,
                    ssl_context=options.tls_context(),
                    timeout=seconds,
                    heartbeat=HEARTBEAT_SECONDS,
                )
                session = await self._prepare(connection)
        except TimeoutError:
            self._problem = f"cannot be reached within {seconds:g} s"
        except (ProbableAuthenticationError, AuthenticationError):
            self._problem = "refuses the user or the password of its URL"
            self._is_refused = True
        except ChannelAccessRefused:
            self._problem = NO_PERMISSION
            self._is_refused = True
        except (*_FAILURES, ValueError) as error:
            # The broker's own words name the user; ours do not.
            self._problem = f"cannot be reached ({reason_of(error)})"
        else:
            self._is_refused = False
            return session
        if connection is not None:
            await close(connection)
        return None

    async def _prepare(self, connection: AbstractConnection) -> _Session:
        puts = await connection.channel(publisher_confirms=True, on_return_raises=True)
        takes = await connection.channel(publisher_confirms=False)
        await takes.set_qos(prefetch_count=1)
        queues: dict[str, AbstractQueue] = {}
        for bucket in range(self.buckets):
            name = self._name(bucket)
            queues[name] = await takes.declare_queue(
                name, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": _DELIVERIES}
            )
        queues[self.plain] = await takes.declare_queue(self.plain, durable=True, arguments={"x-max-length": _BELLS})
        labelled = await takes.declare_exchange(self.labelled, aio_pika.ExchangeType.FANOUT, durable=True)
        session = _Session(connection, puts, takes, queues, labelled)

        def gone(*_: object) -> None:
            session.gone.set()

        connection.close_callbacks.add(gone)
        for channel in (puts, takes):
            channel.close_callbacks.add(gone)
        return session


async def _cancel(_: _Session, queue: AbstractQueue, tag: str) -> None:
    await queue.cancel(tag)
