"""LocalFleet: the back of this process, where it is the only one."""

from __future__ import annotations

from collections.abc import Collection


class LocalFleet:
    """Satisfies `Fleet`. Args: labels: what the back of this process offers."""

    def __init__(self, labels: frozenset[str]) -> None:
        self._labels = labels

    async def offers(self) -> Collection[frozenset[str]]:
        """Return what is offered here."""
        return (self._labels,) if self._labels else ()
