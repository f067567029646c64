"""Walls can be taken away, by name and truthfully, and by tests only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sandbox_adapters
import sandbox_core
import sandbox_mcp
from sandbox_adapters.runners.bubblewrap import LAYERS
from sandbox_adapters.runners.controls import ALL, Control, Controls

_OPTIONS = b"--unshare-pid\0--size\x00512\0--tmpfs\0/tmp\0--ro-bind\0/e\0/proc/1\0--remount-ro\0/proc\0"


def test_nothing_in_the_product_takes_a_control_away() -> None:
    made = []
    for package in (sandbox_core, sandbox_adapters, sandbox_mcp):
        for file in Path(next(iter(package.__path__))).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Controls":
                    made.append((file.name, ast.unparse(node)))
                if isinstance(node, ast.keyword) and node.arg == "controls":
                    made.append((file.name, ast.unparse(node)))
    assert made == [("controls.py", "Controls()")]


def test_by_default_nothing_is_touched() -> None:
    assert ALL.options(_OPTIONS) is _OPTIONS
    assert ALL.layers(LAYERS) == LAYERS
    assert ALL.argument() == ""
    assert ALL.judged
    held = {"max_memory_mb": "rlimit_data"}
    assert ALL.limits(held) is held


@pytest.mark.parametrize(
    ("control", "left"),
    [
        (Control.PID, b"--size\x00512\0--tmpfs\0/tmp\0--ro-bind\0/e\0/proc/1\0--remount-ro\0/proc\0"),
        (Control.SIZED_TMPFS, b"--unshare-pid\0--tmpfs\0/tmp\0--ro-bind\0/e\0/proc/1\0--remount-ro\0/proc\0"),
        (Control.HIDDEN_PID_1, b"--unshare-pid\0--size\x00512\0--tmpfs\0/tmp\0--remount-ro\0/proc\0"),
        (Control.READ_ONLY_PROC, b"--unshare-pid\0--size\x00512\0--tmpfs\0/tmp\0--ro-bind\0/e\0/proc/1\0"),
    ],
)
def test_a_control_takes_its_own_options_along_and_no_others(control: Control, left: bytes) -> None:
    assert Controls(frozenset({control})).options(_OPTIONS) == left


def test_what_is_left_out_is_not_recorded() -> None:
    controls = Controls(frozenset({Control.PID, Control.RLIMITS, Control.SIZED_TMPFS}))
    assert set(LAYERS) - set(controls.layers(LAYERS)) == {"pid"}
    mechanisms = {
        "workspace_mb": "tmpfs size",
        "max_memory_mb": "cgroup v1, whole tree; rlimit_data, per process",
        "max_open_files": "rlimit_nofile, per process",
    }
    assert controls.limits(mechanisms) == {"max_memory_mb": "cgroup v1, whole tree"}
    assert not controls.judged
    assert controls.argument() == "pid,rlimits,sized_tmpfs"
