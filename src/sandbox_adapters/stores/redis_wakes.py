"""Wakes: one subscription connection for each process, which tells waiters how far logs have come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sandbox_adapters.redis_connection import RedisConnection
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import ExecutionStatus

_log = logging.getLogger("sandbox_adapters.redis")

LINGER_SECONDS: Final = 2.0
"""How long a channel stays subscribed after its last waiter: who follows a log waits again at once."""

SILENCE_SECONDS: Final = 5.0
"""After so long without a message the connection is asked whether it lives."""

ENOUGH_SECONDS: Final = 60.0
"""After so long without a connection whoever waits looks, and learns that Redis is away."""

_RETRY_SECONDS: Final = (0.05, 1.0)
PLACES: Final = "places"
"""The channel on which every release of a place is told; always subscribed."""


class Channel:
    """What is known of one execution by subscription.

    `seq` and `status` are of the newest message or look; None while nothing is known for certain, which is so until
    the first look and after the connection was lost.
    """

    __slots__ = ("asked", "confirmed", "generation", "known", "linger", "moved", "waiters")

    def __init__(self) -> None:
        self.generation = 0
        self.known: tuple[int, ExecutionStatus] | None = None
        self.moved = asyncio.Event()
        self.confirmed = asyncio.Event()
        self.asked = False
        self.waiters = 0
        self.linger: asyncio.TimerHandle | None = None

    def learn(self, seq: int, status: ExecutionStatus) -> None:
        """Take news; older news than what is known changes nothing."""
        if self.known is not None and (self.known[1].is_terminal or self.known[0] > seq):
            return
        self.known = (seq, status)
        self.wake()

    def forget(self) -> None:
        """Know nothing for certain: whoever waits looks again."""
        self.known = None
        self.generation += 1
        self.wake()

    def wake(self) -> None:
        """Let every waiter go on."""
        self.moved.set()
        self.moved = asyncio.Event()


class Wakes:
    """Subscribes to executions that somebody waits for. `start` it on the event loop; `stop` it at the end.

    `places_freed` is set when a place was given back anywhere; who takes note of it clears it.

    A channel is subscribed before its execution is looked at, so no news falls between. When the connection breaks it
    is made again, and everybody looks again.
    """

    def __init__(self, redis: RedisConnection) -> None:
        self.places_freed = asyncio.Event()
        self._redis = redis
        self._prefix = f"{redis.namespace}wake:"
        self._channels: dict[str, Channel] = {}
        # An unsubscribed name may be subscribed again before Redis has confirmed: only its last confirmation counts.
        self._unconfirmed: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._connection: AbstractConnection | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away_since: float | None = None

    @property
    def away_seconds(self) -> float:
        """For how long there has been no subscription connection; 0 while there is one."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen(), name="redis-wakes")

    async def stop(self) -> None:
        """End it; whoever still waits sleeps on until it is cancelled."""
        for channel in self._channels.values():
            if channel.linger is not None:
                channel.linger.cancel()
        self._channels.clear()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def tell(self, execution_id: ExecutionId, seq: int, status: ExecutionStatus) -> None:
        """Take news that this process made itself, without the way through Redis."""
        channel = self._channels.get(self._prefix + execution_id)
        if channel is not None:
            channel.learn(seq, status)

    @asynccontextmanager
    async def watch(self, execution_id: ExecutionId) -> AsyncIterator[Channel]:
        """Hear of an execution: at once what this process does to it, everything once the channel is subscribed."""
        name = self._prefix + execution_id
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel()
        channel.waiters += 1
        if channel.linger is not None:
            channel.linger.cancel()
            channel.linger = None
        try:
            yield channel
        finally:
            channel.waiters -= 1
            if not channel.waiters:
                self._let_go(name, channel)

    async def subscribe(self, execution_id: ExecutionId, channel: Channel) -> None:
        """Subscribe, if it is not. Raises StoreUnavailable when that takes longer than an answer may."""
        name = self._prefix + execution_id
        if channel.confirmed.is_set():
            return
        options = self._redis.options
        try:
            async with asyncio.timeout(options.timeout_seconds):
                await self._connected.wait()
                if not channel.asked:
                    await self._subscribe(name)
                await channel.confirmed.wait()
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis at {self._redis.address} did not take a subscription within {options.timeout_seconds:g} s"
            ) from None
        except (RedisError, OSError) as error:
            raise self._redis.explain(error) from error

    def _let_go(self, name: str, channel: Channel) -> None:
        ended = channel.known is not None and channel.known[1].is_terminal
        if ended or not channel.confirmed.is_set():
            self._drop(name, channel)
        else:
            channel.linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._drop, name, channel)

    def _drop(self, name: str, channel: Channel) -> None:
        if self._channels.get(name) is not channel or channel.waiters:
            return
        del self._channels[name]
        if channel.asked:
            self._leaving.add(name)

    async def _subscribe(self, *names: str) -> None:
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        self._leaving.difference_update(names)
        for name in names:
            self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
            if (channel := self._channels.get(name)) is not None:
                channel.asked = True
        await connection.send_command("SUBSCRIBE", *names, check_health=False)
        await self._unsubscribe(connection)

    async def _unsubscribe(self, connection: AbstractConnection) -> None:
        # Nobody waits for this, so it goes along with what is sent anyway.
        if self._leaving:
            names, self._leaving = self._leaving, set()
            await connection.send_command("UNSUBSCRIBE", *names, check_health=False)

    async def _listen(self) -> None:
        pause, first = _RETRY_SECONDS[0], True
        client = self._redis.listener()
        while True:
            try:
                connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # of redis-py
                try:
                    await self._resubscribe(connection)
                    self._redis.tell_connected(again=not first)
                    pause, first, self._away_since = _RETRY_SECONDS[0], False, None
                    await self._read(connection)
                finally:
                    self._connection = None
                    self._connected.clear()
                    await connection.disconnect(nowait=True)
                    await client.connection_pool.release(connection)
            except (RedisError, OSError) as error:
                if not first and pause == _RETRY_SECONDS[0]:
                    _log.warning("Redis went away: %s", self._redis.explain(error))
            self._away_since = self._away_since or time.monotonic()
            self._unconfirmed.clear()
            self._leaving.clear()
            for channel in self._channels.values():
                channel.confirmed.clear()
                channel.asked = False
                if self.away_seconds > ENOUGH_SECONDS:
                    channel.forget()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETRY_SECONDS[1])

    async def _resubscribe(self, connection: AbstractConnection) -> None:
        self._connection = connection
        await self._subscribe(self._prefix + PLACES, *self._channels)
        self._connected.set()

    async def _read(self, connection: AbstractConnection) -> None:
        asked = False
        while True:
            answer = await connection.read_response(timeout=SILENCE_SECONDS, disconnect_on_error=False)
            if answer is not None:
                asked = False
                self._take(answer)
            elif asked:
                raise ConnectionError("no answer to a ping")
            else:
                await self._unsubscribe(connection)
                await connection.send_command("PING", check_health=False)
                asked = True

    def _take(self, answer: Any) -> None:
        match answer:
            case [b"message", bytes() as raw, bytes() as news]:
                name = raw.decode()
                if name == self._prefix + PLACES:
                    self.places_freed.set()
                channel = self._channels.get(name)
                if channel is not None:
                    _tell(channel, news)
            case [b"subscribe", bytes() as raw, _]:
                name = raw.decode()
                left = self._unconfirmed.get(name, 1) - 1
                if left:
                    self._unconfirmed[name] = left
                    return
                self._unconfirmed.pop(name, None)
                channel = self._channels.get(name)
                if channel is not None:
                    channel.confirmed.set()
                    channel.forget()
            case _:
                return  # a pong, or an unsubscription


def _tell(channel: Channel, news: bytes) -> None:
    seq, _, status = news.partition(b" ")
    try:
        channel.learn(int(seq), ExecutionStatus(status.decode()))
    except ValueError:
        channel.forget()  # somebody else's message: look
