"""Whether anybody could run what asks for labels."""

from __future__ import annotations

from sandbox_core.domain.errors import Unservable
from sandbox_core.ports.fleet import Fleet


async def check_servable(fleet: Fleet, labels: frozenset[str]) -> None:
    """Raise Unservable unless a living back that takes work offers all these labels."""
    offers = await fleet.offers()
    if not any(labels <= offered for offered in offers):
        raise Unservable(labels, frozenset().union(*offers))
