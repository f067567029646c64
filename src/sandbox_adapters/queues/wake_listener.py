"""WakeListener: how takers that have nothing to do learn that there is something, over an engine that tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final, Protocol

import anyio

from sandbox_adapters.notices import Notices
from sandbox_core.domain.errors import InfrastructureError

_log = logging.getLogger("sandbox_adapters.queue")

_LONGEST_PAUSE: Final = 1.0


class Telling(Protocol):
    """The part of an engine's connection that carries notices."""

    def listening(self, subjects: Mapping[str, str], /) -> AbstractAsyncContextManager[Notices]:
        """Listen to subjects, each with the name of the group that shares it ("": each hears all)."""
        ...

    async def tell(self, subject: str, /) -> None:
        """Send a notice. Nothing is said when the engine is away."""
        ...


class WakeListener:
    """Listens for takers of one process that offer the same labels, and lets them look.

    Args:
        connection: brings the notices.
        subjects: what these takers listen to, each with its group.
        look_in: after how many seconds takers look without a notice.
        look: lets the takers of this process look.
    """

    def __init__(
        self,
        connection: Telling,
        subjects: Mapping[str, str],
        *,
        look_in: Callable[[], float],
        look: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._subjects = dict(subjects)
        self._look_in = look_in
        self._look = look
        self._taking = 0
        self._waiting = 0
        self._hungry = anyio.Event()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """While it lasts a notice is for us: a taker looks, or is going to."""
        self._taking += 1
        try:
            yield
        finally:
            self._taking -= 1

    async def wait_for(self, changed: anyio.Event) -> None:
        """Wait for `changed`, which `look` sets."""
        self._waiting += 1
        self._hungry.set()
        try:
            await changed.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._hungry = anyio.Event()

    async def run(self) -> None:
        """Listen while a taker waits, until cancelled."""
        pause = 0.0
        while True:
            await self._hungry.wait()
            try:
                await self._listen()
                pause = 0.0
            except InfrastructureError as error:
                if not pause:
                    _log.warning("the queue waits: %s", error)
                self._look()  # takers look for themselves, and learn it
                pause = min(max(0.05, pause * 2), _LONGEST_PAUSE)
                await anyio.sleep(pause)

    async def _listen(self) -> None:
        heard = False
        async with self._connection.listening(self._subjects) as notices:
            self._look()  # what came before we listened was told to others
            while self._taking:
                heard = await notices.wait(self._look_in())
                if self._taking:
                    heard = False
                    self._look()
        if heard:  # by nobody here
            for subject in self._subjects:
                await self._connection.tell(subject)
