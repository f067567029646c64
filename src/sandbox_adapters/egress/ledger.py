"""Ledger: counts what went through one proxy and keeps what was refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sandbox_adapters.egress.rules import Decision
from sandbox_adapters.egress.values import Denial, EgressUsage


class Ledger:
    """Mutable counters of one execution. `now` returns an aware time in UTC; at most `max_denials` are kept.

    The same refusal again is counted on the first one, so that a retry loop does not push the others out.
    """

    def __init__(self, now: Callable[[], datetime], max_denials: int) -> None:
        self.bytes_to_network = 0
        self.bytes_from_network = 0
        self.connections = 0
        self.dialled = 0
        self.faults = 0
        self._denied = 0
        self._denials: dict[tuple[str, int, str], Denial] = {}
        self._now = now
        self._max_denials = max_denials

    def deny(self, decision: Decision) -> None:
        """Record a refusal."""
        self._denied += 1
        key = (decision.host, decision.port, decision.rule)
        known = self._denials.get(key)
        if known is not None:
            self._denials[key] = replace(known, count=known.count + 1)
        elif len(self._denials) < self._max_denials:
            self._denials[key] = Denial(decision.host, decision.port, decision.rule, decision.reason, self._now())

    def denials(self) -> tuple[Denial, ...]:
        """Return the kept refusals, the earliest first."""
        return tuple(self._denials.values())

    def usage(self) -> EgressUsage:
        """Return the counters as they are now."""
        return EgressUsage(
            bytes_to_network=self.bytes_to_network,
            bytes_from_network=self.bytes_from_network,
            connections=self.connections,
            dialled=self.dialled,
            denied=self._denied,
            faults=self.faults,
        )
