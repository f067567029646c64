"""Notices in NATS: how a taker that has nothing to do learns that there is something.

| subject | who listens | when |
| --- | --- | --- |
| `{base}.notice` | idle takers, one group: one process gets each | something without labels waits |
| `{base}.notice.labels` | idle takers with labels, a group for each set they offer | something with labels waits |

They are kept nowhere: who listens hears them, and who heard none looks now and then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.queues.jetstream_turns import Lane, label_token


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

    def subjects(self, offers: frozenset[str]) -> Mapping[str, str]:
        """Return what takers that offer these labels listen to, each with the name of its group."""
        heard = {self.plain: "takers"}
        if offers:
            heard[self.labelled] = label_token(offers)
        return heard
