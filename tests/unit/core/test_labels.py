"""Labels from a submission to the taker, and what is no label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import InvalidArgument, Unservable
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


@pytest.mark.anyio
async def test_a_supervisor_takes_what_it_offers_and_no_more(house: OpenHouse) -> None:
    async with house(labels=frozenset({"gpu"})) as home:
        needy = Submission(Command(shell="needy"), labels=frozenset({"gpu", "large"}))
        fits = Submission(Command(shell="fits"), labels=frozenset({"gpu"}))
        needy_id = (await home.service.submit(LOCAL_PRINCIPAL, needy)).id
        fits_id = (await home.service.submit(LOCAL_PRINCIPAL, fits)).id
        assert (await home.ended(fits_id)).labels == ("gpu",)
        assert (await home.service.get(LOCAL_PRINCIPAL, needy_id)).status is ExecutionStatus.PENDING
        assert await home.queue.depth() == 1


@pytest.mark.anyio
async def test_a_submission_with_what_is_no_label_is_refused(house: OpenHouse) -> None:
    async with house() as home:
        with pytest.raises(InvalidArgument):
            await home.service.submit(LOCAL_PRINCIPAL, Submission(Command(shell="x"), labels=frozenset({"A"})))
        assert await home.queue.depth() == 0
