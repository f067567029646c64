"""CpuWatch looks at a tree no earlier than it could be over, and says once that it is."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from sandbox_adapters.runners.child.cpu_watch import LONGEST_SECONDS, SHORTEST_SECONDS, CpuWatch
from sandbox_adapters.runners.hardening.cgroup_leaf import Branch, Leaf
from sandbox_core.domain.policy import LARGEST_LIMIT

FOREVER = -1


class Machine:
    """A clock that is set, and a leaf whose CPU time is."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.watch = CpuWatch(cores=4, clock=lambda: self.now)
        self.folder = folder
        self.leaf = Leaf([Branch(2, frozenset(), str(folder))])
        self.use(0)

    def use(self, seconds: float) -> None:
        (self.folder / "cpu.stat").write_text(f"user_usec {round(seconds * 1e6)}\nsystem_usec 0\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_job_the_wait_is_what_others_want(machine: Machine) -> None:
    assert [machine.watch.sooner(timeout) for timeout in (FOREVER, 0.025, 7)] == [FOREVER, 0.025, 7]
    assert machine.watch.over() == []


def test_the_first_look_is_when_every_core_together_could_have_used_it(machine: Machine) -> None:
    machine.watch.watch(1, machine.leaf, 20)
    machine.use(20)
    assert machine.watch.sooner(FOREVER) == pytest.approx(5)
    assert machine.watch.sooner(0.025) == 0.025
    machine.now += 4.9
    assert machine.watch.over() == []
    machine.now += 0.2
    assert machine.watch.over() == [1]
    assert machine.watch.over() == []
    assert machine.watch.sooner(FOREVER) == FOREVER


def test_looks_come_closer_but_never_closer_than_the_shortest(machine: Machine) -> None:
    machine.watch.watch(1, machine.leaf, 20)
    for used, wait in ((16, 1.0), (19.9999, SHORTEST_SECONDS), (19.9999, SHORTEST_SECONDS)):
        machine.now += machine.watch.sooner(FOREVER)
        machine.use(used)
        assert machine.watch.over() == []
        assert machine.watch.sooner(FOREVER) == pytest.approx(wait)


def test_the_largest_bound_leaves_a_wait_that_the_kernel_takes(machine: Machine) -> None:
    machine.watch.watch(1, machine.leaf, LARGEST_LIMIT)
    assert machine.watch.sooner(FOREVER) == LONGEST_SECONDS
    with machine.folder.joinpath("cpu.stat").open() as readable:
        poll = select.poll()
        poll.register(readable, select.POLLIN)  # a file is always ready, so that nothing waits
        assert poll.poll(machine.watch.sooner(FOREVER) * 1000)
    machine.now += LONGEST_SECONDS
    assert machine.watch.over() == []
    assert machine.watch.sooner(FOREVER) == LONGEST_SECONDS


def test_a_look_that_is_late_asks_for_no_wait(machine: Machine) -> None:
    machine.watch.watch(1, machine.leaf, 4)
    machine.now += 60
    assert machine.watch.sooner(FOREVER) == 0


def test_a_job_that_ended_is_not_looked_at(machine: Machine) -> None:
    machine.watch.watch(1, machine.leaf, 4)
    machine.watch.watch(2, machine.leaf, 8)
    machine.watch.forget(1)
    machine.watch.forget(1)
    machine.use(100)
    assert machine.watch.sooner(FOREVER) == pytest.approx(2)
    machine.now += 2
    assert machine.watch.over() == [2]


def test_a_tree_that_cannot_be_counted_is_over(machine: Machine) -> None:
    machine.watch.watch(1, Leaf([]), 4)
    machine.now += 1
    assert machine.watch.over() == [1]
