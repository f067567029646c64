"""Notices in NATS: how a taker that has nothing to do learns that there is something.

| subject | who listens | when |
| --- | --- | --- |
| `{base}.notice` | idle takers, one group: one process gets each | something without labels waits |
| `{base}.notice.labels` | idle takers with labels, a group for each set they offer | something with labels waits |

They are kept nowhere: who listens hears them, and who heard none looks now and then.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.queues.jetstream_turns import Lane, label_token
from sandbox_core.domain.errors import InfrastructureError

_log = logging.getLogger("sandbox_adapters.queue")

_LONGEST_PAUSE: Final = 1.0


class Wakes:
    """Tells idle takers."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self.plain = f"{connection.options.base}.notice"
        self.labelled = f"{connection.options.base}.notice.labels"

    async def tell(self, lane: Lane) -> None:
        """Wake one taker; for what needs labels, one of each kind."""
        await self._connection.tell(self.labelled if lane.needs else self.plain)

    async def tell_of_more(self, taken: Lane, waiting: Iterable[Lane]) -> None:
        """Wake one more taker for what waits beside an item of a lane."""
        kinds = Counter(bool(lane.needs) for lane in waiting)
        kinds[bool(taken.needs)] -= 1
        for needs_labels, subject in ((False, self.plain), (True, self.labelled)):
            if kinds[needs_labels] > 0:
                await self._connection.tell(subject)


class WakeListener:
    """Listens for takers of one process that offer the same labels, and lets them look.

    Args:
        offers: the labels.
        look_in: after how many seconds takers look without a notice.
        look: lets the takers of this process look.
    """

    def __init__(
        self,
        connection: NatsConnection,
        wakes: Wakes,
        *,
        offers: frozenset[str],
        look_in: Callable[[], float],
        look: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._heard_by = {wakes.plain: "takers"}
        if offers:
            self._heard_by[wakes.labelled] = label_token(offers)
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
                    _log.warning("the queue waits for NATS: %s", error)
                self._look()  # takers look for themselves, and learn it
                pause = min(max(0.05, pause * 2), _LONGEST_PAUSE)
                await anyio.sleep(pause)

    async def _listen(self) -> None:
        heard = False
        async with self._connection.listening(self._heard_by) as notices:
            self._look()  # what came before we listened was told to others
            while self._taking:
                heard = await notices.wait(self._look_in())
                if self._taking:
                    heard = False
                    self._look()
        if heard:  # by nobody here
            for subject in self._heard_by:
                await self._connection.tell(subject)
