"""Cgroups on this machine: whole trees are bounded, measured, killed and swept."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from sandbox_adapters.runners.hardening.cgroup_leaf import Leaf, TreeLimits
from sandbox_adapters.runners.hardening.cgroup_paths import Hierarchy
from sandbox_adapters.runners.hardening.cgroups import Cgroups, open_cgroups

pytestmark = pytest.mark.integration

MIB = 1 << 20

with open_cgroups() as _seen:
    FOUND, USABLE, PROBLEMS = frozenset(_seen.controllers), bool(_seen.directories), dict(_seen.problems)


def needs(*controllers: str) -> pytest.MarkDecorator:
    missing = sorted(set(controllers) - FOUND)
    return pytest.mark.skipif(
        bool(missing), reason=f"NO CGROUP CONTROLLER {missing} HERE ({PROBLEMS}): this limit is not shown to hold"
    )


needs_any = pytest.mark.skipif(not USABLE, reason=f"NO USABLE CGROUP HERE ({PROBLEMS}): nothing is shown")


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    with open_cgroups() as found:
        yield found
        directories = found.directories
    assert not [directory for directory in directories if os.path.exists(directory)]


@pytest.fixture
def leaf(cgroups: Cgroups) -> Iterator[Leaf]:
    made = cgroups.make_leaf("one")
    yield made
    made.kill()
    wait_until_empty(made)
    assert made.remove()


def files_named(leaf: Leaf, name: str) -> list[Path]:
    return [file for directory in leaf.directories if (file := Path(directory, name)).exists()]


def start(leaf: Leaf, work: Callable[[], object]) -> int:
    """Fork a child that does `work` in the leaf and exits 0, or 1 when it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # A collection would touch, and so copy, what this process has in memory: that counts as the leaf's.
            gc.disable()
            leaf.enter()
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until_gone(pids: set[int], seconds: float = 60) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([descriptor], [], [], seconds)
        os.close(descriptor)
        assert ready, f"process {pid} lives"


def wait_until_empty(leaf: Leaf) -> None:
    for _ in range(1000):
        pids = leaf.processes()
        if not pids:
            return
        wait_until_gone(pids)
    raise AssertionError("there is always another process")


def pause() -> NoReturn:
    while True:
        signal.pause()


def hold_memory_in_four_processes(mebibytes: int) -> None:
    """Each has this much at the same time as the others, or is dead."""
    ends = []
    children = []
    for _ in range(4):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            memory = bytearray(mebibytes * MIB)
            memory[::4096] = b"x" * len(memory[::4096])
            os.write(write, b"1")
            pause()
        os.close(write)
        ends.append(read)
        children.append(pid)
    told = [os.read(end, 1) for end in ends]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert all(told)


def fork_without_end() -> None:
    while True:
        try:
            os.fork()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise


@needs("memory")
class TestMemory:
    def test_bomb_of_several_processes_is_killed_and_told(self, leaf: Leaf) -> None:
        leaf.limit(TreeLimits(memory_bytes=100 * MIB))
        assert wait_for(start(leaf, lambda: hold_memory_in_four_processes(60))) != 0
        usage = leaf.usage()
        assert usage.oom_kills is not None
        assert usage.oom_kills >= 1
        assert usage.peak_memory_bytes is not None
        assert 90 * MIB < usage.peak_memory_bytes <= 100 * MIB

    def test_the_same_without_the_limit_runs(self, leaf: Leaf) -> None:
        assert wait_for(start(leaf, lambda: hold_memory_in_four_processes(60))) == 0
        usage = leaf.usage()
        assert usage.oom_kills == 0
        assert usage.peak_memory_bytes is not None
        assert 240 * MIB < usage.peak_memory_bytes < 300 * MIB

    def test_file_in_memory_counts(self, leaf: Leaf) -> None:
        leaf.limit(TreeLimits(memory_bytes=50 * MIB))

        def fill_memfd() -> None:
            descriptor = os.memfd_create("filled")
            for _ in range(100):
                os.write(descriptor, bytes(MIB))

        assert wait_for(start(leaf, fill_memfd)) == -signal.SIGKILL
        assert (leaf.usage().oom_kills or 0) >= 1

    def test_limit_can_be_changed_both_ways(self, leaf: Leaf) -> None:
        for mebibytes in (100, 50, 400):
            leaf.limit(TreeLimits(memory_bytes=mebibytes * MIB))
        assert wait_for(start(leaf, lambda: hold_memory_in_four_processes(60))) == 0


@needs("pids")
class TestProcesses:
    def test_fork_bomb_is_bounded_and_told(self, leaf: Leaf) -> None:
        leaf.limit(TreeLimits(processes=20))

        def fork_until_refused() -> None:
            for count in range(1000):
                try:
                    pid = os.fork()
                except OSError as error:
                    assert (error.errno, count) == (errno.EAGAIN, 19)  # noqa: PT017 - in a child
                    return
                if pid == 0:
                    pause()
            raise AssertionError("never refused")

        assert wait_for(start(leaf, fork_until_refused)) == 0
        usage = leaf.usage()
        assert usage.forks_refused == 1
        assert usage.peak_processes in (20, None)

    @pytest.mark.parametrize("one_by_one", [False, True])
    def test_kill_ends_a_running_fork_bomb(self, leaf: Leaf, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        leaf.limit(TreeLimits(processes=100))
        pid = start(leaf, fork_without_end)
        while len(leaf.processes()) < 100:
            os.sched_yield()
        if one_by_one:
            leaf._kill_one_by_one()
            # Who is being forked meanwhile is not listed yet; so nobody may fork.
            assert "0\n" in [file.read_text() for file in files_named(leaf, "pids.max")]
        else:
            leaf.kill()
        assert wait_for(pid) == -signal.SIGKILL
        wait_until_empty(leaf)


@needs("cpu")
def test_cpu_quota_holds_a_hog_back(leaf: Leaf) -> None:
    # Little, so that it is reached also where others leave a process hardly more.
    leaf.limit(TreeLimits(cpus=0.03))

    def burn() -> None:
        while time.process_time() < 0.03:
            continue

    assert wait_for(start(leaf, burn)) == 0
    told = "".join(file.read_text() for file in files_named(leaf, "cpu.stat"))
    throttled = [int(line.split()[1]) for line in told.splitlines() if line.startswith("nr_throttled")]
    assert max(throttled) >= 1


@needs("cpuacct")
def test_cpu_time_of_the_whole_tree_is_counted(leaf: Leaf) -> None:
    def burn_in_an_orphan() -> None:
        read, write = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                while time.process_time() < 0.2:
                    continue
                os.write(write, b"1")
                os._exit(0)
            os._exit(0)
        assert os.read(read, 1) == b"1"

    assert wait_for(start(leaf, burn_in_an_orphan)) == 0
    usage = leaf.usage()
    assert (usage.user_seconds or 0) + (usage.system_seconds or 0) >= 0.19


@needs_any
class TestLeaf:
    def test_kill_reaches_a_daemon_that_left_its_session(self, leaf: Leaf) -> None:
        def daemonize() -> None:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    pause()
                os._exit(0)
            os.wait()

        assert wait_for(start(leaf, daemonize)) == 0
        (daemon,) = leaf.processes()
        leaf.kill()
        wait_until_gone({daemon})
        assert leaf.processes() == set()

    def test_kill_spares_everyone_else(self, cgroups: Cgroups, leaf: Leaf) -> None:
        other = cgroups.make_leaf("other")
        pid = start(other, pause)
        while pid not in other.processes():
            os.sched_yield()
        leaf.kill()
        assert other.processes() == {pid}
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        other.kill()
        assert wait_for(pid) == -signal.SIGKILL
        assert other.remove()

    def test_remove_waits_for_nothing(self, leaf: Leaf) -> None:
        pid = start(leaf, pause)
        while pid not in leaf.processes():
            os.sched_yield()
        assert not leaf.remove()
        leaf.kill()
        assert wait_for(pid) == -signal.SIGKILL
        assert leaf.remove()
        assert leaf.remove()

    def test_name_is_used_once(self, cgroups: Cgroups, leaf: Leaf) -> None:
        with pytest.raises(FileExistsError):
            cgroups.make_leaf("one")
        assert all(os.path.isdir(directory) for directory in leaf.directories)

    @pytest.mark.parametrize("name", ["", ".", "..", "../one", "a/b", "cgroup.procs", "a" * 101])
    def test_name_that_is_none_is_refused(self, cgroups: Cgroups, name: str) -> None:
        with pytest.raises(ValueError, match="no name"):
            cgroups.make_leaf(name)

    def test_process_can_be_attached_from_outside(self, leaf: Leaf) -> None:
        pid = os.fork()
        if pid == 0:
            pause()
        leaf.attach(pid)
        assert leaf.processes() == {pid}
        os.kill(pid, signal.SIGKILL)
        assert wait_for(pid) == -signal.SIGKILL


@pytest.fixture
def apart(cgroups: Cgroups) -> Iterator[list[Hierarchy]]:
    """Where no other server of this machine makes or sweeps directories: below one of this process's own."""
    base = cgroups.make_leaf("base")
    yield [Hierarchy(branch.version, branch.controllers, branch.below("base").directory) for branch in cgroups.branches]
    assert base.remove()


@pytest.fixture
def sweeper(apart: list[Hierarchy]) -> Iterator[Cgroups]:
    with open_cgroups(hierarchies=apart) as found:
        assert found.directories
        yield found


def server_that_dies(apart: list[Hierarchy], *, payload_holds_locks: bool = False) -> tuple[list[str], int]:
    """Run a server that is killed while something runs in its leaf; return its directories and that something's pid."""
    read, write = os.pipe()
    server = os.fork()
    if server == 0:
        cgroups = open_cgroups(hierarchies=apart)
        leaf = cgroups.make_leaf("left")
        payload = os.fork()
        if payload == 0:
            leaf.enter()
            if not payload_holds_locks:
                for lock in cgroups.locks:
                    os.close(lock)
            os.write(write, "\n".join([str(os.getpid()), *cgroups.directories]).encode())
            pause()
        pause()
    pid, *directories = os.read(read, 65536).decode().split("\n")
    os.close(read)
    os.close(write)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    return directories, int(pid)


@needs_any
class TestSweep:
    def test_what_a_dead_server_left_is_killed_and_removed(self, sweeper: Cgroups, apart: list[Hierarchy]) -> None:
        directories, payload = server_that_dies(apart)
        assert all(map(os.path.isdir, directories))
        swept = set(sweeper.sweep())
        wait_until_gone({payload})
        swept |= set(sweeper.sweep())
        assert swept >= set(directories)
        assert not any(map(os.path.exists, directories))

    def test_what_belongs_to_a_living_server_stays(self, sweeper: Cgroups, apart: list[Hierarchy]) -> None:
        with open_cgroups(hierarchies=apart) as other:
            leaf = other.make_leaf("one")
            pid = start(leaf, pause)
            while pid not in leaf.processes():
                os.sched_yield()
            assert not set(sweeper.sweep()) & set(other.directories)
            assert leaf.processes() == {pid}
            leaf.kill()
            assert wait_for(pid) == -signal.SIGKILL

    def test_server_lives_as_long_as_somebody_holds_its_locks(self, sweeper: Cgroups, apart: list[Hierarchy]) -> None:
        directories, holder = server_that_dies(apart, payload_holds_locks=True)
        assert not set(sweeper.sweep()) & set(directories)
        os.kill(holder, 0)
        os.kill(holder, signal.SIGKILL)
        wait_until_gone({holder})
        sweeper.sweep()
        assert not any(map(os.path.exists, directories))

    def test_what_is_named_otherwise_stays(self, sweeper: Cgroups) -> None:
        strangers = [
            f"{os.path.dirname(directory)}/{name}"
            for directory in sweeper.directories
            for name in ("sandbox-server-short", "sandbox-other", "sandbox-server-0123456789abcdef0")
        ]
        for stranger in strangers:
            os.mkdir(stranger)
        try:
            assert not set(sweeper.sweep()) & set(strangers)
            assert all(map(os.path.isdir, strangers))
        finally:
            for stranger in strangers:
                os.rmdir(stranger)

    def test_its_own_directories_stay(self, sweeper: Cgroups) -> None:
        assert not set(sweeper.sweep()) & set(sweeper.directories)


@needs_any
def test_close_takes_the_leaves_with_it() -> None:
    cgroups = open_cgroups()
    leaf = cgroups.make_leaf("one")
    directories = cgroups.directories
    cgroups.close()
    assert not any(map(os.path.exists, [*leaf.directories, *directories]))
    cgroups.close()
