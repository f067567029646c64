"""Limits of BubblewrapRunner hold for whole trees, and its cgroups go when it goes, however it goes."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess  # noqa: TID251 - a server that can be killed
import sys
from contextlib import ExitStack, suppress

import anyio
import pytest

from sandbox_adapters.runners import bubblewrap
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.child.kernel import children
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, launch_of, run_command
from tests.stopping import pause

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

with open_cgroups(("memory", "pids")) as _seen:
    FOUND, PROBLEMS = frozenset(_seen.controllers), dict(_seen.problems)


def needs(*controllers: str) -> pytest.MarkDecorator:
    missing = sorted(set(controllers) - FOUND)
    return pytest.mark.skipif(
        bool(missing), reason=f"NO CGROUP CONTROLLER {missing} HERE ({PROBLEMS}): limits of trees are not shown to hold"
    )


_FOUR_TIMES_60_MIB = """
import os, signal, sys
ends = []
for _ in range(4):
    read, write = os.pipe()
    if os.fork() == 0:
        memory = bytearray(60 << 20)
        memory[::4096] = b"x" * len(memory[::4096])
        os.write(write, b"1")
        signal.pause()
    os.close(write)
    ends.append(read)
sys.exit(0 if all([os.read(end, 1) for end in ends]) else 3)
"""
_FORK_UNTIL_REFUSED = """
import os, signal
made = 0
try:
    while made < 50:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError:
    print(made)
    raise SystemExit(CODE)
"""
_SERVER = """
import anyio, socket, sys
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.testing.runner_harness import launch_of

async def main():
    async with BubblewrapRunner() as runner, runner.start(launch_of(Command(argv=("sleep", "1000")))):
        cgroups = runner._walls.cgroups
        with socket.socket(fileno=int(sys.argv[1])) as channel:
            socket.send_fds(channel, [b"locks"], cgroups.locks)
        print(runner._link.pid, *cgroups.directories, sep="|", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def python(runner: BubblewrapRunner, script: str, **limits: int) -> Finished:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(**limits))
    return await run_command(runner, Command(argv=("python3", "-c", script)), policy)


@needs("memory")
async def test_memory_of_all_processes_together_is_bounded(runner: BubblewrapRunner) -> None:
    bounded = (await python(runner, _FOUR_TIMES_60_MIB, max_memory_mb=100)).exit
    assert bounded.reason is TerminationReason.MEMORY
    (hit,) = bounded.limits_hit
    assert (hit.name, hit.limit) == ("max_memory_mb", 100)
    assert 90 < (hit.reached or 0) < 110
    assert bounded.message is not None

    # No single one is over the limit, which the limit of each process beside it does not see.
    free = (await python(runner, _FOUR_TIMES_60_MIB, max_memory_mb=400)).exit
    assert (free.exit_code, free.reason, free.limits_hit) == (0, TerminationReason.EXITED, ())
    assert (free.peak_memory_bytes or 0) >= 60 << 20


@needs("memory")
async def test_files_in_the_workspace_count_as_memory(runner: BubblewrapRunner) -> None:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=50, workspace_mb=100))
    finished = await run_command(runner, Command(argv=("dd", "if=/dev/zero", "of=big", "bs=1M", "count=90")), policy)
    assert finished.exit.reason is TerminationReason.MEMORY
    assert finished.exit.exit_code == 128 + signal.SIGKILL


@needs("pids")
@pytest.mark.parametrize(("code", "reason"), [(7, TerminationReason.PROCESSES), (0, TerminationReason.EXITED)])
async def test_processes_are_bounded_and_told(runner: BubblewrapRunner, code: int, reason: TerminationReason) -> None:
    finished = await python(runner, _FORK_UNTIL_REFUSED.replace("CODE", str(code)), max_processes=10)
    assert finished.stdout == b"9\n"
    assert (finished.exit.exit_code, finished.exit.reason) == (code, reason)
    (hit,) = finished.exit.limits_hit
    assert (hit.name, hit.limit, hit.reached) == ("max_processes", 10, 10)
    assert finished.exit.peak_processes == 10


@needs("memory", "pids")
async def test_the_record_says_what_holds_for_the_tree(runner: BubblewrapRunner) -> None:
    limits = ResourceLimits(max_memory_mb=100, max_processes=10)
    launch = launch_of(Command(argv=("true",)), ExecutionPolicy(resource_limits=limits))
    async with runner.start(launch) as process:
        isolation = process.isolation
        await process.wait()
    assert "cgroup_tree" in isolation.layers
    assert "whole tree" in isolation.limits["max_memory_mb"]
    assert "whole tree" in isolation.limits["max_processes"]
    assert set(isolation.facts["cgroup_controllers"].replace(",", "").split()) >= {"memory", "pids"}


@needs("memory")
async def test_without_its_cgroup_nothing_runs(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_READY_CHILDREN", 0)
    async with BubblewrapRunner(spares=0) as runner:
        runner._walls.cgroups.close()
        finished = await run_command(runner, Command(argv=("echo", "ran")))
    assert finished.exit.reason is TerminationReason.SETUP_FAILED
    assert finished.stdout == b""


@needs("memory")
async def test_children_that_wait_may_die(anyio_backend: str) -> None:
    async with BubblewrapRunner(spares=0) as runner:
        link = runner._link
        assert link is not None
        with anyio.fail_after(60):
            for _ in range(3):
                while not (waiting := children(link.pid)):  # noqa: ASYNC110 - nobody tells of them
                    await anyio.sleep(0.005)
                for pid in waiting:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    wait_for_end(pid)
                finished = await run_command(runner, Command(argv=("echo", "ran")))
                assert finished.stdout == b"ran\n"


@needs("memory")
async def test_nothing_is_left_when_the_runner_closes(anyio_backend: str) -> None:
    async with BubblewrapRunner() as runner:
        directories = runner._walls.cgroups.directories
        for _ in range(5):
            await run_command(runner, Command(argv=("true",)))
        assert all(map(os.path.isdir, directories))
    assert not any(map(os.path.exists, directories))


def start_server() -> tuple[subprocess.Popen[str], int, list[str], ExitStack]:
    """Return a server, its launcher, its cgroups, and what closes this process's share of the locks on them.

    As long as that is open, no other server that starts on this machine takes them for those of a dead one.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
        server = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, pass_fds=[theirs.fileno()])
        assert server.stdout is not None
        launcher, *directories = server.stdout.readline().strip().split("|")
        locks = ExitStack()
        for lock in socket.recv_fds(ours, 16, 16)[1]:
            locks.callback(os.close, lock)
    return server, int(launcher), directories, locks


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 60)[0], f"{pid} lives"
    finally:
        os.close(descriptor)


@needs("memory")
def test_the_launcher_removes_the_cgroups_of_a_server_that_was_killed() -> None:
    server, launcher, directories, locks = start_server()
    with locks:
        assert directories
        assert all(map(os.path.isdir, directories))
        with server:
            server.kill()
        wait_for_end(launcher)
        assert not any(map(os.path.exists, directories))


@needs("memory")
async def test_the_next_runner_removes_what_a_killed_server_and_launcher_left(anyio_backend: str) -> None:
    server, launcher, directories, locks = start_server()
    with locks, server:
        pause(launcher)
        waiting = children(launcher)
        server.kill()
        os.kill(launcher, signal.SIGKILL)
        for pid in (launcher, *waiting):
            wait_for_end(pid)
        assert all(map(os.path.isdir, directories))
    async with BubblewrapRunner():
        with anyio.fail_after(60):
            # Another server that starts at the same time may be the one that is removing them.
            while any(map(os.path.exists, directories)):  # noqa: ASYNC110
                await anyio.sleep(0.01)
