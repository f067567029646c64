"""LocalFleet keeps the Fleet contract."""

from __future__ import annotations

import pytest

from sandbox_adapters.fleet.local import LocalFleet
from sandbox_core.ports.fleet import Fleet
from sandbox_core.testing.fleet_contract import FleetContract, MakeFleet


def satisfies_the_port(fleet: LocalFleet) -> Fleet:
    """Checked by mypy."""
    return fleet


class TestLocalFleet(FleetContract):
    @pytest.fixture
    def make_fleet(self) -> MakeFleet:
        async def make(labels: frozenset[str]) -> Fleet:
            return LocalFleet(labels)

        return make
