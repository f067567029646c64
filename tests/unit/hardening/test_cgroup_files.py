"""What is read from and written to cgroup files, without a kernel behind them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandbox_adapters.runners.hardening.cgroup_leaf import Branch, Leaf, TreeLimits, TreeUsage
from sandbox_adapters.runners.hardening.cgroup_paths import Hierarchy, own_hierarchies
from sandbox_adapters.runners.hardening.cgroups import open_cgroups

EVERY = frozenset({"memory", "pids", "cpu", "cpuacct"})


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def process_with(tmp_path: Path, memberships: str, mounts: str) -> str:
    return str(folder(tmp_path / "self", cgroup=memberships, mountinfo=mounts))


class TestWhereThisProcessStands:
    def test_version_2_alone(self, tmp_path: Path) -> None:
        own = folder(tmp_path / "fs" / "a.slice" / "b.service", cgroup__procs=f"1\n{os.getpid()}\n")
        proc = process_with(
            tmp_path,
            "0::/a.slice/b.service\n",
            f"30 20 0:26 / {tmp_path}/fs rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        )
        assert own_hierarchies(proc) == [Hierarchy(2, frozenset(), str(own))]

    def test_both_versions_with_controllers_mounted_together(self, tmp_path: Path) -> None:
        one = folder(tmp_path / "cpu,cpuacct" / "x", cgroup__procs=f"{os.getpid()}\n")
        two = folder(tmp_path / "unified", cgroup__procs=f"{os.getpid()}\n")
        proc = process_with(
            tmp_path,
            "3:cpu,cpuacct:/x\n1:name=systemd:/x\n0::/\n",
            f"31 30 0:27 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"32 30 0:28 / {tmp_path}/unified rw shared:9 - cgroup2 cgroup2 rw\n",
        )
        assert own_hierarchies(proc) == [
            Hierarchy(1, frozenset({"cpu", "cpuacct"}), str(one)),
            Hierarchy(2, frozenset(), str(two)),
        ]

    def test_mount_of_a_part_of_the_tree_and_a_blank_in_its_place(self, tmp_path: Path) -> None:
        own = folder(tmp_path / "c group" / "in", cgroup__procs=f"{os.getpid()}\n")
        point = f"{tmp_path}/c\\040group"
        proc = process_with(tmp_path, "0::/box/one/in\n", f"30 20 0:26 /box/one {point} rw - cgroup2 cgroup2 rw\n")
        assert own_hierarchies(proc) == [Hierarchy(2, frozenset(), str(own))]

    @pytest.mark.parametrize("path", ["/../other", "/..", "/elsewhere"])
    def test_cgroup_that_cannot_be_seen_is_left_out(self, tmp_path: Path, path: str) -> None:
        folder(tmp_path / "fs", cgroup__procs="1\n")
        folder(tmp_path / "other", cgroup__procs=f"{os.getpid()}\n")
        proc = process_with(tmp_path, f"0::{path}\n", f"30 20 0:26 / {tmp_path}/fs rw - cgroup2 cgroup2 rw\n")
        assert own_hierarchies(proc) == []

    def test_machine_without_cgroups(self, tmp_path: Path) -> None:
        assert own_hierarchies(str(tmp_path / "nothing")) == []
        assert own_hierarchies(process_with(tmp_path, "", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n")) == []


class TestLimits:
    def leaf(self, path: Path, version: int, **files: str) -> Leaf:
        return Leaf([Branch(version, EVERY, str(folder(path, **files)))])

    def test_version_2(self, tmp_path: Path) -> None:
        names = ["memory__max", "memory__oom__group", "memory__swap__max", "pids__max", "cpu__max"]
        leaf = self.leaf(tmp_path, 2, **dict.fromkeys(names, ""))
        leaf.limit(TreeLimits(memory_bytes=1 << 20, processes=7, cpus=0.5))
        assert [(tmp_path / name.replace("__", ".")).read_text() for name in names] == [
            *["1048576", "1", "0", "7"],
            "50000 100000",
        ]

    @pytest.mark.parametrize(("now", "expected"), [(1 << 60, 1 << 20), (4096, 1 << 20)])
    def test_version_1(self, tmp_path: Path, now: int, expected: int) -> None:
        names = ["memory__limit_in_bytes", "pids__max", "cpu__cfs_period_us", "cpu__cfs_quota_us"]
        memsw = {"memory__memsw__limit_in_bytes": str(now)}
        leaf = self.leaf(tmp_path, 1, **dict.fromkeys(names, ""), **memsw)
        leaf.limit(TreeLimits(memory_bytes=expected, processes=7, cpus=2))
        read = [(tmp_path / name.replace("__", ".")).read_text() for name in [*names, *memsw]]
        assert read[:4] == [str(expected), "7", "100000", "200000"]
        # Written over what was there, without cutting it off: a file of the kernel has no length.
        assert read[4].startswith(str(expected))

    def test_limit_without_its_controller_is_an_error(self, tmp_path: Path) -> None:
        leaf = Leaf([Branch(2, frozenset(), str(tmp_path))])
        leaf.limit(TreeLimits())
        with pytest.raises(OSError, match="memory") as raised:
            leaf.limit(TreeLimits(memory_bytes=1))
        assert raised.value.errno == errno.ENOTSUP


class TestUsage:
    def test_version_2(self, tmp_path: Path) -> None:
        folder(
            tmp_path,
            memory__peak="4096\n",
            memory__events="low 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n",
            pids__peak="9\n",
            pids__current="0\n",
            pids__events="max 5\n",
            cpu__stat="usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n",
        )
        assert Leaf([Branch(2, EVERY, str(tmp_path))]).usage() == TreeUsage(4096, 2, 9, 5, 0, 2.0, 1.0)

    def test_version_1(self, tmp_path: Path) -> None:
        folder(
            tmp_path,
            memory__max_usage_in_bytes="4096\n",
            memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            pids__peak="9\n",
            pids__current="0\n",
            pids__events="max 5\n",
            cpuacct__usage_user="2000000000\n",
            cpuacct__usage_sys="1000000000\n",
        )
        assert Leaf([Branch(1, EVERY, str(tmp_path))]).usage() == TreeUsage(4096, 2, 9, 5, 0, 2.0, 1.0)

    @pytest.mark.parametrize("version", [1, 2])
    def test_what_a_kernel_does_not_tell_is_unknown(self, tmp_path: Path, version: int) -> None:
        leaf = Leaf([Branch(version, EVERY, str(tmp_path))])
        assert leaf.usage() == TreeUsage()
        assert leaf.cpu_seconds() is None

    def test_cpu_time_is_read_where_it_is_counted(self, tmp_path: Path) -> None:
        second = folder(tmp_path / "2", cpu__stat="usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n")
        first = folder(tmp_path / "1", cpuacct__usage_user="250000000\n", cpuacct__usage_sys="500000000\n")
        assert Leaf([Branch(2, frozenset(), str(second))]).cpu_seconds() == 3.0
        assert Leaf([Branch(1, frozenset({"pids", "cpuacct"}), str(first))]).cpu_seconds() == 0.75
        assert Leaf([Branch(1, frozenset({"pids"}), str(first))]).cpu_seconds() is None


def test_directory_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    with open_cgroups(hierarchies=[Hierarchy(1, frozenset({"memory"}), absent)]) as cgroups:
        assert (dict(cgroups.controllers), cgroups.can_kill) == ({}, False)
        assert cgroups.problems == {absent: "No such file or directory"}


def test_hierarchy_of_version_1_that_does_not_help_is_left_alone(tmp_path: Path) -> None:
    with open_cgroups(["memory"], hierarchies=[Hierarchy(1, frozenset({"pids"}), str(tmp_path))]) as cgroups:
        assert list(tmp_path.iterdir()) == []
        assert cgroups.directories == []
