"""Which of the server's cgroup directories a job gets a leaf in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandbox_adapters.runners.child.leaves import Leaves
from sandbox_adapters.runners.child.wire import RunRequest
from sandbox_adapters.runners.hardening.cgroup_leaf import Branch

_REQUEST = RunRequest(
    bwrap=b"bwrap",
    command=(b"true",),
    uid=-1,
    processes_inside=-1,
    tree_memory_bytes=-1,
    tree_processes=-1,
    tree_cpu_seconds=-1,
    limits=(),
)
_COUNTED = replace(_REQUEST, tree_cpu_seconds=1)


def _branch(directory: Path, version: int, *controllers: str) -> Branch:
    directory.mkdir()
    return Branch(version, frozenset(controllers), str(directory))


@pytest.fixture
def memory(tmp_path: Path) -> Branch:
    return _branch(tmp_path / "memory", 1, "memory")


@pytest.fixture
def bare(tmp_path: Path) -> Branch:
    return _branch(tmp_path / "unified", 2)


def _parents(leaves: Leaves, *, counting_cpu: bool = False) -> list[str]:
    leaf = leaves.make(counting_cpu=counting_cpu)
    return [] if leaf is None else [Path(directory).parent.name for directory in leaf.directories]


def test_a_hierarchy_without_controllers_is_used_to_count_only(memory: Branch, bare: Branch) -> None:
    leaves = Leaves([memory, bare])
    assert _parents(leaves) == ["memory"]
    assert _parents(leaves, counting_cpu=True) == ["unified", "memory"]
    assert leaves.usual_do_for(_REQUEST)
    assert not leaves.usual_do_for(_COUNTED)


def test_it_is_used_always_where_it_is_the_only_one(bare: Branch) -> None:
    leaves = Leaves([bare])
    assert _parents(leaves) == ["unified"]
    assert leaves.usual_do_for(_COUNTED)


def test_one_that_has_controllers_is_used_always(tmp_path: Path) -> None:
    leaves = Leaves([_branch(tmp_path / "unified", 2, "memory", "pids")])
    assert _parents(leaves) == ["unified"]
    assert leaves.usual_do_for(_COUNTED)


def test_without_a_directory_there_is_no_leaf() -> None:
    leaves = Leaves([])
    assert leaves.make(counting_cpu=True) is None
    assert leaves.usual_do_for(_COUNTED)
