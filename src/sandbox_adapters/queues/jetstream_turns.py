"""Turns: whose turn it is next, as one process sees it: principals in turn, inside one its lanes in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

NOTHING: Final = "-"
"""The token for no session, and for no labels."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The subject of items that wait one behind the other. All parts are tokens of a subject."""

    principal: str
    session: str
    labels: str

    @property
    def needs(self) -> frozenset[str]:
        """The labels that a taker must offer."""
        if self.labels == NOTHING:
            return frozenset()
        return frozenset(self.labels.replace("~", ".").split(","))


def label_token(labels: Iterable[str]) -> str:
    """Return what stands for labels in a subject: commas between them, and no dot."""
    return ",".join(sorted(labels)).replace(".", "~") or NOTHING


class Turns:
    """The order of service. What was served goes to the end; what is new enters at the end."""

    def __init__(self) -> None:
        self._ring: OrderedDict[str, OrderedDict[Lane, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Return how many lanes are known."""
        return self._count

    def enter(self, lane: Lane) -> None:
        """Note a lane that has work."""
        lanes = self._ring.setdefault(lane.principal, OrderedDict())
        if lane not in lanes:
            lanes[lane] = None
            self._count += 1

    def keep(self, lanes: Iterable[Lane]) -> None:
        """Note all lanes that have work, those that came first first, and forget the others."""
        known = dict.fromkeys(lanes)
        for lane in known:
            self.enter(lane)
        for principal in list(self._ring):
            for lane in [one for one in self._ring[principal] if one not in known]:
                self.leave(lane)

    def leave(self, lane: Lane) -> None:
        """Forget a lane that has no work."""
        lanes = self._ring.get(lane.principal)
        if lanes is not None and lane in lanes:
            del lanes[lane]
            self._count -= 1
            if not lanes:
                del self._ring[lane.principal]

    def served(self, lane: Lane) -> None:
        """Put the lane, and its principal, at the end."""
        self._move(lane, last=True)

    def first(self, lane: Lane) -> None:
        """Put the lane, and its principal, in front."""
        self.enter(lane)
        self._move(lane, last=False)

    def order(self, asking: Collection[Lane]) -> list[Lane]:
        """Return lanes by turn, without those being asked about; principals that somebody asks about come last."""
        busy = {lane.principal for lane in asking}
        return [
            lane
            for is_busy in (False, True)
            for principal, lanes in self._ring.items()
            if (principal in busy) is is_busy
            for lane in lanes
            if lane not in asking
        ]

    def _move(self, lane: Lane, *, last: bool) -> None:
        lanes = self._ring.get(lane.principal)
        if lanes is not None and lane in lanes:
            lanes.move_to_end(lane, last=last)
            self._ring.move_to_end(lane.principal, last=last)
