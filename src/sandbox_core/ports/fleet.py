"""Fleet: what the backs that live offer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Fleet(Protocol):
    """The backs that take from one queue. One that was not heard of for a while lives no more."""

    async def offers(self) -> Collection[frozenset[str]]:
        """Return the labels of each living back that takes work, those of several alike once, and none without labels.

        Raises StoreUnavailable.
        """
        ...


class NoFleet:
    """A Fleet without labels: who knows no backs refuses every label."""

    async def offers(self) -> Collection[frozenset[str]]:
        """Return nothing."""
        return ()
