"""Turns and Pace: whose turn it is in one process, and how fast a queue empties."""

from __future__ import annotations

from sandbox_adapters.queues.jetstream_turns import Lane, Turns
from sandbox_adapters.queues.pace import Pace


def lane(name: str) -> Lane:
    return Lane(name[0], name[1:], "-")


def names(turns: Turns, *asking: str) -> list[str]:
    return [one.principal + one.session for one in turns.order({lane(name) for name in asking})]


def test_principals_and_their_lanes_come_in_turn() -> None:
    turns = Turns()
    turns.keep(lane(name) for name in ("a1", "a2", "b1", "c1"))
    served = []
    for _ in range(6):
        served.append(names(turns)[0])
        turns.served(lane(served[-1]))
    assert served == ["a1", "b1", "c1", "a2", "b1", "c1"]


def test_a_principal_that_somebody_asks_about_comes_last_and_the_lane_itself_not_at_all() -> None:
    turns = Turns()
    turns.keep(lane(name) for name in ("a1", "a2", "b1"))
    assert names(turns, "a1") == ["b1", "a2"]


def test_what_has_no_work_any_more_is_forgotten_and_what_is_new_enters_at_the_end() -> None:
    turns = Turns()
    turns.keep([lane("a1"), lane("b1")])
    turns.served(lane("a1"))
    turns.keep([lane("c1"), lane("a1")])
    assert names(turns) == ["a1", "c1"]
    turns.leave(lane("a1"))
    turns.leave(lane("a1"))
    turns.served(lane("a1"))
    assert names(turns) == ["c1"]
    turns.enter(lane("c1"))
    assert len(turns) == 1


def test_what_was_given_back_is_first() -> None:
    turns = Turns()
    turns.keep([lane("a1"), lane("b1"), lane("b2")])
    turns.first(lane("b2"))
    turns.first(lane("d1"))
    assert names(turns) == ["d1", "b2", "b1", "a1"]


def test_the_pace_is_told_once_something_has_left_and_is_bounded() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.retry_after() == 5
    pace.saw(10)
    now = 30.0
    pace.saw(10)
    assert pace.retry_after() == 5
    pace.saw(20)
    assert pace.retry_after() == 3
    now = 4000.0
    pace.saw(21)
    assert pace.retry_after() == 30
    pace.saw(3)
    assert pace.retry_after() == 5
    pace.saw(1000)
    assert pace.retry_after() == 1
