"""Labels from a submission to the taker, and what is no label."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import IdempotencyConflict, InvalidArgument, Unservable
from sandbox_core.domain.ids import LOCAL_PRINCIPAL
from sandbox_core.domain.labels import MAX_LABELS, parse_labels
from sandbox_core.domain.status import ExecutionStatus

from .conftest import OpenHouse

LABELS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)


@given(st.lists(LABELS, max_size=MAX_LABELS))
def test_labels_are_a_set(labels: list[str]) -> None:
    assert parse_labels(labels) == frozenset(labels)


@pytest.mark.parametrize(
    "bad",
    [
        ["GPU"],
        [""],
        ["a" * 64],
        ["-a"],
        ["a,b"],
        ["a b"],
        ["a|b"],
        ["ü"],
        ["a\n"],
        [1],
        5,
        None,
        [None],
        "gpu",
        list("abcdefghi"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(bad: list[object]) -> None:
    with pytest.raises(InvalidArgument, match=r"^labels: "):
        parse_labels(bad)


@given(st.text(max_size=70))
def test_no_label_can_change_the_name_of_a_lane(text: str) -> None:
    try:
        (label,) = parse_labels([text])
    except InvalidArgument:
        return
    assert not set(label) & set("|,: =%{}*\n")


def test_an_unservable_request_names_what_nobody_offers_and_what_is_offered() -> None:
    error = Unservable({"gpu", "arm64"}, {"gpu", "large"})
    assert error.code == "unservable"
    assert "no worker offers arm64" in str(error)
    assert "Offered now: gpu, large" in str(error)
    assert "all of them together" in str(Unservable({"gpu", "large"}, {"gpu", "large"}))
    assert "Offered now: none" in str(Unservable({"gpu"}, ()))


class Elsewhere:
    """A Fleet that offers this and counts the questions."""

    def __init__(self, *offers: set[str]) -> None:
        self.asked = 0
        self._offers = [frozenset(labels) for labels in offers]

    async def offers(self) -> list[frozenset[str]]:
        self.asked += 1
        return self._offers


@pytest.mark.anyio
async def test_a_supervisor_takes_what_it_offers_and_no_more(house: OpenHouse) -> None:
    async with house(labels=frozenset({"gpu"}), fleet=Elsewhere({"gpu"}, {"gpu", "large"})) as home:
        needy = Submission(Command(shell="needy"), labels=frozenset({"gpu", "large"}))
        fits = Submission(Command(shell="fits"), labels=frozenset({"gpu"}))
        needy_id = (await home.service.submit(LOCAL_PRINCIPAL, needy)).id
        fits_id = (await home.service.submit(LOCAL_PRINCIPAL, fits)).id
        assert (await home.ended(fits_id)).labels == ("gpu",)
        assert (await home.service.get(LOCAL_PRINCIPAL, needy_id)).status is ExecutionStatus.PENDING
        assert await home.queue.depth() == 1


@pytest.mark.anyio
async def test_what_nobody_offers_is_refused_and_leaves_nothing_behind(house: OpenHouse) -> None:
    async with house(labels=frozenset({"gpu"})) as home:
        wanted = Submission(Command(shell="x"), labels=frozenset({"gpu", "large"}), idempotency_key="k" * 20)
        for _ in range(2):
            with pytest.raises(Unservable) as caught:
                await home.service.submit(LOCAL_PRINCIPAL, wanted)
            assert caught.value.labels == ("gpu", "large")
            assert caught.value.offered == ("gpu",)
        assert await home.queue.depth() == 0
        assert not (await home.service.list_page(LOCAL_PRINCIPAL)).executions


@pytest.mark.anyio
async def test_labels_must_be_offered_together(house: OpenHouse) -> None:
    async with house(fleet=Elsewhere({"gpu"}, {"large"})) as home:
        wanted = Submission(Command(shell="x"), labels=frozenset({"gpu", "large"}))
        with pytest.raises(Unservable, match="all of them together"):
            await home.service.submit(LOCAL_PRINCIPAL, wanted)


@pytest.mark.anyio
async def test_nobody_is_asked_for_an_execution_without_labels_or_for_one_that_exists(house: OpenHouse) -> None:
    fleet = Elsewhere({"gpu"})
    async with house(labels=frozenset({"gpu"}), fleet=fleet) as home:
        await home.ended(await home.submit("plain"))
        assert fleet.asked == 0
        wanted = Submission(Command(shell="x"), labels=frozenset({"gpu"}), idempotency_key="k" * 20)
        first = await home.service.submit(LOCAL_PRINCIPAL, wanted)
        fleet._offers.clear()
        assert (await home.service.submit(LOCAL_PRINCIPAL, wanted)).id == first.id
        assert fleet.asked == 1


@pytest.mark.anyio
async def test_a_key_used_with_other_labels_is_a_conflict(house: OpenHouse) -> None:
    async with house(labels=frozenset({"gpu"})) as home:
        wanted = Submission(Command(shell="x"), labels=frozenset({"gpu"}), idempotency_key="k" * 20)
        await home.service.submit(LOCAL_PRINCIPAL, wanted)
        with pytest.raises(IdempotencyConflict):
            await home.service.submit(LOCAL_PRINCIPAL, replace(wanted, labels=frozenset()))


@pytest.mark.anyio
async def test_a_submission_with_what_is_no_label_is_refused(house: OpenHouse) -> None:
    async with house() as home:
        with pytest.raises(InvalidArgument):
            await home.service.submit(LOCAL_PRINCIPAL, Submission(Command(shell="x"), labels=frozenset({"A"})))
        assert await home.queue.depth() == 0
