"""StateStore contract: places, counted per node, principal and session."""

from __future__ import annotations

import anyio
import pytest

from sandbox_core.domain.ids import Principal, SessionId, new_execution_id
from sandbox_core.ports.store import Place, Quota, Scope
from sandbox_core.testing.samples import NODE, OTHER_NODE, WIDE, pending, place_of
from sandbox_core.testing.store_harness import StoreHarness

_ALICE, _BOB = Principal("alice"), Principal("bob")
_S1, _S2 = SessionId("s1"), SessionId("s2")


@pytest.mark.anyio
class PlaceContract:
    """No scope ever holds more places than its quota, and none is lost."""

    async def test_a_full_node_refuses_only_its_own(self, harness: StoreHarness) -> None:
        quota = Quota(2, 100, 100)
        for _ in range(2):
            assert await _reserve(harness, _place(harness), quota) is None
        assert await _reserve(harness, _place(harness, principal=_BOB), quota) is Scope.NODE
        assert await _reserve(harness, _place(harness, node_two=True), quota) is None

    async def test_a_full_principal_is_refused_on_every_node(self, harness: StoreHarness) -> None:
        quota = Quota(100, 2, 100)
        for node_two in (False, True):
            assert await _reserve(harness, _place(harness, node_two=node_two), quota) is None
        for node_two in (False, True):
            place = _place(harness, node_two=node_two, session_id=_S1)
            assert await _reserve(harness, place, quota) is Scope.PRINCIPAL
        assert await _reserve(harness, _place(harness, principal=_BOB), quota) is None

    async def test_a_full_session_is_its_principals_only(self, harness: StoreHarness) -> None:
        quota = Quota(100, 100, 1)
        assert await _reserve(harness, _place(harness, session_id=_S1), quota) is None
        assert await _reserve(harness, _place(harness, session_id=_S1), quota) is Scope.SESSION
        for place in (
            _place(harness, session_id=_S2),
            _place(harness, principal=_BOB, session_id=_S1),
            _place(harness),
            _place(harness),
        ):
            assert await _reserve(harness, place, quota) is None

    async def test_the_first_full_scope_is_named(self, harness: StoreHarness) -> None:
        assert await _reserve(harness, _place(harness, session_id=_S1), WIDE) is None
        place = _place(harness, session_id=_S1)
        assert await _reserve(harness, place, Quota(1, 1, 1)) is Scope.NODE
        assert await _reserve(harness, place, Quota(2, 1, 1)) is Scope.PRINCIPAL
        assert await _reserve(harness, place, Quota(2, 2, 1)) is Scope.SESSION
        assert await _reserve(harness, place, Quota(2, 2, 2)) is None

    async def test_a_refused_place_counts_nowhere(self, harness: StoreHarness) -> None:
        quota = Quota(100, 100, 1)
        assert await _reserve(harness, _place(harness, session_id=_S1), quota) is None
        for _ in range(5):
            assert await _reserve(harness, _place(harness, session_id=_S1), quota) is Scope.SESSION
        assert await _reserve(harness, _place(harness), Quota(2, 2, 1)) is None

    async def test_a_released_place_is_free_once(self, harness: StoreHarness) -> None:
        quota = Quota(2, 100, 100)
        first, second = _place(harness), _place(harness)
        assert await _reserve(harness, first, quota) is None
        assert await _reserve(harness, second, quota) is None
        await harness.store.release(first)
        await harness.store.release(first)
        await harness.store.release(_place(harness))
        assert await _reserve(harness, _place(harness), quota) is None
        assert await _reserve(harness, _place(harness), quota) is Scope.NODE

    async def test_a_held_place_is_reserved_again_without_counting_twice(self, harness: StoreHarness) -> None:
        place = _place(harness, session_id=_S1)
        for _ in range(3):
            assert await _reserve(harness, place, Quota(1, 1, 1)) is None
        await harness.store.release(place)
        assert await _reserve(harness, _place(harness, session_id=_S1), Quota(1, 1, 1)) is None

    async def test_a_place_lapses_when_its_holder_is_silent(self, harness: StoreHarness) -> None:
        quota = Quota(1, 1, 1)
        lost = _place(harness)
        assert await _reserve(harness, lost, quota) is None
        await harness.advance(14)
        assert await _reserve(harness, _place(harness), quota) is Scope.NODE
        await harness.advance(1)
        assert await _reserve(harness, _place(harness), quota) is None
        await harness.store.release(lost)
        assert await _reserve(harness, _place(harness), quota) is Scope.NODE

    async def test_renewing_a_lease_keeps_its_place(self, harness: StoreHarness) -> None:
        quota = Quota(1, 100, 100)
        execution = await harness.store.create(pending(harness.clock))
        place = place_of(execution)
        assert await _reserve(harness, place, quota) is None
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        for _ in range(4):
            await harness.advance(10)
            await harness.store.renew([claim.lease], lease_seconds=15)
            assert await _reserve(harness, _place(harness), quota) is Scope.NODE
        await harness.advance(15)
        assert await _reserve(harness, _place(harness), quota) is None

    async def test_renewing_a_lapsed_lease_does_not_bring_back_its_lapsed_place(self, harness: StoreHarness) -> None:
        quota = Quota(1, 100, 100)
        execution = await harness.store.create(pending(harness.clock))
        assert await _reserve(harness, place_of(execution), quota) is None
        claim = await harness.store.claim(execution.id, NODE, lease_seconds=15)
        await harness.advance(15)
        assert len(await harness.store.renew([claim.lease], lease_seconds=15)) == 1
        assert await _reserve(harness, _place(harness), quota) is None

    async def test_reservations_at_once_never_exceed_the_quota(self, harness: StoreHarness) -> None:
        answers: list[Scope | None] = []

        async def reserve() -> None:
            answers.append(await _reserve(harness, _place(harness), Quota(100, 7, 100)))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(reserve)
        assert answers.count(None) == 7
        assert answers.count(Scope.PRINCIPAL) == 13


async def _reserve(harness: StoreHarness, place: Place, quota: Quota) -> Scope | None:
    return await harness.store.reserve(place, quota, lease_seconds=15)


def _place(
    harness: StoreHarness,
    *,
    principal: Principal = _ALICE,
    session_id: SessionId | None = None,
    node_two: bool = False,
) -> Place:
    node = OTHER_NODE if node_two else NODE
    return Place(new_execution_id(harness.clock.now()), node, principal, session_id)
