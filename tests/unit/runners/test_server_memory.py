"""A lack of the server's own memory is told to those that may have been killed for it, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_adapters.runners.server_memory import ServerMemory


class Cgroup:
    """Files in which the kernel counts, and a clock that moves with every event."""

    def __init__(self, directory: Path, version: int) -> None:
        self._text = {1: "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n", 2: "low 0\nmax 9\noom 4\noom_kill {}\n"}[
            version
        ]
        self._path = directory / "events"
        self._kills = 0
        self.now = 0.0
        self.kill(0)
        self.memory = ServerMemory([str(self._path), str(directory / "none")], clock=lambda: self.now)

    def kill(self, processes: int) -> None:
        self._kills += processes
        self._path.write_text(self._text.format(self._kills))

    def start(self) -> float:
        self.now += 1
        return self.now

    def ran_out_since(self, started: float) -> bool:
        self.now += 1
        return self.memory.ran_out_since(started)


@pytest.fixture(params=[1, 2])
def cgroup(request: pytest.FixtureRequest, tmp_path: Path) -> Cgroup:
    return Cgroup(tmp_path, request.param)


def test_without_a_kill_nothing_is_told(cgroup: Cgroup) -> None:
    assert not cgroup.ran_out_since(cgroup.start())


def test_every_one_that_was_killed_together_is_told(cgroup: Cgroup) -> None:
    started = [cgroup.start() for _ in range(3)]
    cgroup.kill(3)
    assert [cgroup.ran_out_since(one) for one in started] == [True, True, True]


def test_one_that_started_after_a_kill_that_was_seen_is_not(cgroup: Cgroup) -> None:
    first = cgroup.start()
    cgroup.kill(1)
    assert cgroup.ran_out_since(first)
    assert not cgroup.ran_out_since(cgroup.start())


def test_kills_before_the_server_started_count_for_nobody(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path, 2)
    cgroup.kill(5)
    later = ServerMemory([str(tmp_path / "events")], clock=lambda: cgroup.now)
    assert not later.ran_out_since(cgroup.start())


def test_files_that_cannot_be_read_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("oom_kill many\n")
    memory = ServerMemory([str(tmp_path / "odd"), str(tmp_path / "none")], clock=lambda: 0.0)
    assert not memory.ran_out_since(0.0)


def test_this_machines_own_are_found_or_not_without_an_error() -> None:
    assert ServerMemory().ran_out_since(0.0) in (False, True)
