"""Denials are bounded, printable, and reach the outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.domain.denial import (
    MAX_DENIALS,
    MAX_MESSAGE_CHARACTERS,
    MAX_TARGET_CHARACTERS,
    Denial,
    DenialKind,
    bounded,
)
from sandbox_core.testing.scripted_runner import Script

from .conftest import OpenHouse

_DENIALS = st.lists(
    st.builds(Denial, st.sampled_from(DenialKind), st.text(max_size=9), st.text(max_size=3), st.text(), st.integers(1))
)


def _refused(name: str, count: int = 1) -> Denial:
    return Denial(DenialKind.NETWORK, name, "network.allowed_domains", f"{name} is not allowed.", count)


@given(denials=_DENIALS)
def test_bounding_again_changes_nothing_and_every_refusal_is_counted(denials: list[Denial]) -> None:
    kept, omitted = bounded(denials)
    assert bounded(kept) == (kept, 0)
    assert sum(denial.count for denial in kept) + omitted == sum(denial.count for denial in denials)
    assert all(denial.target.isprintable() and denial.message.isprintable() for denial in kept)


def test_the_same_refusal_is_one_denial_and_too_many_are_only_counted() -> None:
    many = [_refused(f"host-{number}:443") for number in range(MAX_DENIALS + 5)]
    kept, omitted = bounded([_refused("host-0:443", 3), *many, _refused("host-3:443"), _refused("late:1", 2)])
    assert [denial.target for denial in kept] == [f"host-{number}:443" for number in range(MAX_DENIALS)]
    assert (kept[0].count, kept[3].count, omitted) == (4, 2, 7)


def test_what_the_program_chose_is_cut_and_escaped() -> None:
    hostile = "\x1b[2J\n\ud800\u202e" + "a" * 1000
    (kept,), _ = bounded([Denial(DenialKind.FILESYSTEM, hostile, hostile, hostile)])
    assert kept.target.startswith("\\x1b[2J\\n\\ud800\\u202eaaa")
    assert (len(kept.target), len(kept.message)) == (MAX_TARGET_CHARACTERS, MAX_MESSAGE_CHARACTERS)


@pytest.mark.anyio
async def test_what_the_runner_saw_refused_and_moved_is_on_the_outcome(house: OpenHouse) -> None:
    many = [_refused(f"host-{number}:443") for number in range(MAX_DENIALS + 1)]
    script = Script(denials=many, denials_omitted=4, network_sent_bytes=10, network_received_bytes=0)
    async with house({"net": script, "plain": Script()}) as home:
        outcome = (await home.ended(await home.submit("net"))).outcome
        plain = (await home.ended(await home.submit("plain"))).outcome
    assert outcome is not None
    assert (outcome.denials, outcome.denials_omitted) == (tuple(many[:MAX_DENIALS]), 5)
    assert (outcome.usage.network_sent_bytes, outcome.usage.network_received_bytes) == (10, 0)
    assert plain is not None
    assert (plain.denials, plain.denials_omitted, plain.usage.network_sent_bytes) == ((), 0, None)
