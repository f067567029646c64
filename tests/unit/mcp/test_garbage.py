"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from sandbox_mcp import garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_the_start_made_is_not_looked_at_and_what_comes_after_seldom() -> None:
    made: list[list[int]] = [[] for _ in range(1000)]
    young = gc.get_threshold()[0]
    garbage.settle()
    assert gc.get_freeze_count() > len(made)
    assert gc.isenabled()
    assert gc.get_threshold()[0] > young


def test_cycles_that_requests_leave_are_still_freed() -> None:
    garbage.settle()
    before = gc.get_stats()[0]["collected"]
    for _ in range(2 * gc.get_threshold()[0]):
        cycle: list[object] = []
        cycle.append(cycle)
    assert gc.get_stats()[0]["collected"] > before
