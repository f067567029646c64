"""A command of an unprivileged server never gets more open files than half of the server's."""

from __future__ import annotations

import resource

import pytest

from sandbox_adapters.runners.descriptor_room import make_room, within

NOFILE, CORE, DATA = resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_DATA


@pytest.mark.parametrize(("asked", "given"), [(None, 500), (400, 400), (65536, 500)])
def test_a_limit_is_always_there_and_bounded(asked: int | None, given: int) -> None:
    limits = [(CORE, 0, 0), *([] if asked is None else [(NOFILE, asked, asked)]), (DATA, 9, 9)]
    assert within(limits, 500) == [(NOFILE, given, given), (CORE, 0, 0), (DATA, 9, 9)]


def test_the_own_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: made.append((which, both)))
    assert make_room() == 2048
    assert made == [(NOFILE, (4096, 4096))]


def test_no_limit_at_all_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: pytest.fail("it was changed"))
    assert make_room() >= 65536
