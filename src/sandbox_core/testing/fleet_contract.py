"""The contract suite of Fleet.

To test a fleet of your own, subclass and give it one fixture, which makes a fleet whose living backs take work and
offer the given labels, one back for each set:

    class TestMyFleet(FleetContract):
        @pytest.fixture
        def make_fleet(self):
            async def make(*backs: frozenset[str]) -> Fleet: ...
            return make

A fleet of several backs keeps `SharedFleetContract`, which has all of it. The tests are async and marked `anyio`; the
`anyio_backend` fixture chooses asyncio or trio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from sandbox_core.ports.fleet import Fleet

MakeFleet = Callable[..., Awaitable[Fleet]]
"""Makes a fleet of the backs that offer these sets of labels, all of them living and taking work."""

_NONE: frozenset[str] = frozenset()
_GPU = frozenset({"gpu"})
_LARGE = frozenset({"gpu", "large.memory", "arm64"})


@pytest.mark.anyio
class FleetContract:
    """Everything that a Fleet of one back promises. See the module's text for how to use it."""

    @pytest.mark.parametrize("labels", [_GPU, _LARGE])
    async def test_a_back_offers_its_labels_together(self, make_fleet: MakeFleet, labels: frozenset[str]) -> None:
        fleet = await make_fleet(labels)
        assert list(await fleet.offers()) == [labels]

    async def test_a_back_without_labels_offers_nothing(self, make_fleet: MakeFleet) -> None:
        fleet = await make_fleet(_NONE)
        assert list(await fleet.offers()) == []

    async def test_asking_changes_nothing(self, make_fleet: MakeFleet) -> None:
        fleet = await make_fleet(_LARGE)
        assert list(await fleet.offers()) == list(await fleet.offers()) == [_LARGE]


class SharedFleetContract(FleetContract):
    """Everything that a Fleet of any number of backs promises."""

    async def test_no_back_offers_nothing(self, make_fleet: MakeFleet) -> None:
        fleet = await make_fleet()
        assert list(await fleet.offers()) == []

    async def test_several_alike_are_told_once_and_others_apart(self, make_fleet: MakeFleet) -> None:
        fleet = await make_fleet(_GPU, _NONE, _LARGE, _GPU)
        offers = list(await fleet.offers())
        assert len(offers) == 2
        assert set(offers) == {_GPU, _LARGE}
