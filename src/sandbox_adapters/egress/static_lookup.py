"""StaticLookup: names that the operator gave addresses, before the system's resolver is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox_adapters.egress.hosts import IpAddress
from sandbox_adapters.egress.resolver import Lookup


class StaticLookup:
    """Lookup. `hosts` maps canonical names to addresses; any other name is looked up by `otherwise`."""

    def __init__(self, hosts: Mapping[str, Sequence[IpAddress]], otherwise: Lookup) -> None:
        self._hosts = hosts
        self._otherwise = otherwise

    async def __call__(self, name: str, port: int) -> Sequence[IpAddress]:
        """Return the addresses of `name`. Raises OSError."""
        known = self._hosts.get(name)
        return known if known is not None else await self._otherwise(name, port)
