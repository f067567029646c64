"""Neighbours: what is trusted at the end of an execution that had others beside it."""

from __future__ import annotations

from dataclasses import replace

from sandbox_adapters.runners.child.grant_check import Region
from sandbox_adapters.runners.grant_neighbours import Neighbours

TOP = Region("/p", known={}, git=(), protect=True, denied=())
SEEN = replace(TOP, known={"/p/.envrc": 7, "/p/.git/hooks": 8, "/p/db": 9, "/p/s/.vscode": 5}, git=("/p/.git",))


def settled(*others: Region, named: tuple[str, ...] = ()) -> Region:
    neighbours = Neighbours()
    for other in others:
        neighbours.settle(neighbours.arrive(), [other], ())
    (found,) = neighbours.settle(neighbours.arrive(), [SEEN], named)
    return found


def test_alone_all_is_trusted() -> None:
    assert settled() == SEEN


def test_what_a_neighbour_did_not_find_is_not_trusted() -> None:
    found = settled(TOP)
    assert dict(found.known) == {"/p/db": 9}
    assert found.git == ()


def test_what_a_neighbour_found_too_is_trusted() -> None:
    assert settled(SEEN) == SEEN
    assert dict(settled(replace(TOP, known={"/p/.envrc": 7})).known) == {"/p/.envrc": 7, "/p/db": 9}


def test_a_neighbour_makes_things_only_where_it_may_write_and_is_watched() -> None:
    assert settled(replace(TOP, path="/q")) == SEEN
    assert settled(replace(TOP, protect=False)) == SEEN
    assert settled(replace(TOP, known={"/p/.envrc": 7, "/p/s": 1}, git=("/p/.git",))).known == {
        "/p/.envrc": 7, "/p/db": 9, "/p/s/.vscode": 5,
    }  # fmt: skip
    assert "/p/s/.vscode" not in settled(replace(TOP, path="/p/s")).known


def test_what_the_policy_names_stays_as_it_is() -> None:
    assert "/p/.envrc" in settled(TOP, named=("/p/.envrc",)).known


def test_one_that_arrives_while_another_looks_counts_and_one_that_left_before_does_not() -> None:
    neighbours = Neighbours()
    early = neighbours.arrive()
    neighbours.settle(early, [TOP], ())
    neighbours.leave(early)
    looking = neighbours.arrive()
    late = neighbours.arrive()
    neighbours.settle(late, [TOP], ())
    neighbours.leave(late)
    (found,) = neighbours.settle(looking, [SEEN], ())
    assert "/p/.envrc" not in found.known
    neighbours.leave(looking)
    neighbours.leave(looking)
    assert neighbours.settle(neighbours.arrive(), [SEEN], ()) == (SEEN,)
