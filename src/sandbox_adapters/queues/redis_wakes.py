"""WakeListener: blocks in Redis for takers of one process that have nothing to do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from redis.exceptions import RedisError

from sandbox_adapters.redis_connection import RedisConnection
from sandbox_core.domain.errors import InfrastructureError

_log = logging.getLogger("sandbox_adapters.queue")

_LONGEST_PAUSE: Final = 1.0


class WakeListener:
    """Pops a token while a taker waits, and lets the takers look; also when none came for a while.

    Args:
        offers: the labels that these takers offer, sorted and joined by commas: a token for other labels never comes.
        look_in: after how many seconds takers look without a token.
        wake: lets the takers of this process look.
        pass_on: gives a token back, named by its offers, that came when no taker waited any more.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        offers: str,
        look_in: Callable[[], float],
        wake: Callable[[], None],
        pass_on: Callable[[str], Awaitable[None]],
    ) -> None:
        self._connection = connection
        anyones = f"{connection.namespace}queue:wake"
        self._lists = {f"{anyones}:{offers}": offers, anyones: ""} if offers else {anyones: ""}
        self._look_in = look_in
        self._wake = wake
        self._pass_on = pass_on
        self._waiting = 0
        self._hungry = anyio.Event()

    async def wait_for(self, changed: anyio.Event) -> None:
        """Wait for `changed`, which `wake` sets, with a token popped for it meanwhile."""
        self._waiting += 1
        self._hungry.set()
        try:
            await changed.wait()
        finally:
            self._waiting -= 1
            if not self._waiting and self._hungry.is_set():
                self._hungry = anyio.Event()

    async def run(self) -> None:
        """Pop until cancelled."""
        listener = self._connection.listener()
        bound = self._connection.options.timeout_seconds
        pause = 0.0
        while True:
            await self._hungry.wait()
            seconds = self._look_in()
            try:
                # The client itself would wait for ever on a connection that died without a word.
                with anyio.fail_after(seconds + bound):
                    popped = await listener.execute_command("BLPOP", *self._lists, seconds)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                if popped is not None and not self._waiting:
                    await self._pass_on(self._lists[popped[0].decode()])
            except (RedisError, OSError, TimeoutError, InfrastructureError) as error:
                if not pause:
                    _log.warning("the queue waits for Redis: %s", self._connection.explain(error))
                pause = min(max(0.05, pause * 2), _LONGEST_PAUSE)
                await anyio.sleep(pause)
            else:
                pause = 0.0
            # Takers look for themselves, and learn it when Redis is away. A token is for us again when one waits again.
            self._hungry = anyio.Event()
            self._wake()
