"""What something costs a Redis: commands, round trips, bytes and processor time, by its own counters."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass

from tests.redis_server import RedisServer


@dataclass(frozen=True, slots=True)
class Cost:
    """What was counted in `seconds`. `commands` has those inside scripts; `round_trips` are reads from clients."""

    seconds: float
    commands: float
    round_trips: float
    received_bytes: float
    sent_bytes: float
    processor_seconds: float

    @property
    def bytes(self) -> float:
        """What went over the network, both ways."""
        return self.received_bytes + self.sent_bytes

    @property
    def words(self) -> str:
        """For the table."""
        asked = f"{self.round_trips:.1f} round trips, {self.commands:.0f} commands"
        moved = f"{self.received_bytes / 1024:.1f} KiB to it, {self.sent_bytes / 1024:.1f} KiB from it"
        return f"{asked}, {moved}, {self.processor_seconds * 1e6:.0f} µs of processor time"

    def per(self, count: float) -> Cost:
        """Return the share of one of `count`."""
        return Cost(*(value / count for value in astuple(self)))

    def plus(self, other: Cost) -> Cost:
        """Return both together."""
        return Cost(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def less(self, other: Cost) -> Cost:
        """Return this without the other."""
        return self.plus(other.per(-1))

    def less_idle(self, idle: Cost) -> Cost:
        """Return this without what would have happened anyway, measured over another time."""
        return self.less(idle.per(idle.seconds / self.seconds))


class RedisMeter:
    """Counts from its creation until `read`. What the meter itself costs is measured first, and left out."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        first, self._begun = self._now(), self._now()
        self._own = [0.0, *(new - old for new, old in zip(self._begun[1:], first[1:], strict=True))]

    def read(self) -> Cost:
        """Return what it was since the beginning."""
        now = self._now()
        return Cost(*(new - old - own for new, old, own in zip(now, self._begun, self._own, strict=True)))

    def _now(self) -> tuple[float, ...]:
        info = self._redis.ask("INFO", "all")
        return (
            time.perf_counter(),
            float(sum(value["calls"] for name, value in info.items() if name.startswith("cmdstat_"))),
            float(info["total_reads_processed"]),
            float(info["total_net_input_bytes"]),
            float(info["total_net_output_bytes"]),
            info["used_cpu_user"] + info["used_cpu_sys"],
        )
