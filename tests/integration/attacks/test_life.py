"""Nothing outlives its execution, and no execution ends what is not its own; each shown with its control gone too."""

from __future__ import annotations

import os
import signal
import subprocess  # noqa: TID251 - servers that can be killed
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from examples.serving import is_gone
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_candidates import candidates
from sandbox_adapters.runners.child.kernel import children
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import ProcessExit, Stream
from sandbox_core.testing.runner_harness import (
    launch_of,
    open_descriptors,
    processes_with,
    read_until,
    run_command,
)
from tests.integration.runners.grant_cases import mount_table
from tests.stopping import pause, wait_stopped

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_BOUND_SECONDS = 60
_RUNS = 100
_TRIES = 300
_SERVER = """
import anyio, sys
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of

async def main():
    controls = Controls(frozenset(Control(name) for name in sys.argv[2].split(",") if name))
    async with BubblewrapRunner(controls=controls, spares=0) as runner:
        async with runner.start(launch_of(Command(shell=f"echo up; exec sleep {sys.argv[1]}"))) as process:
            await process.read(Stream.STDOUT, 10)
            print(runner._link.pid, flush=True)
            await process.wait()

anyio.run(main)
"""
_HOSTILE = """
trap '' TERM INT HUP QUIT PIPE USR1 USR2
mkdir -p $(printf 'deep/%.0s' $(seq 50)) && chmod 0 deep
for n in 1 2 3; do setsid -f sleep 1000; done
head -c 2M /dev/zero > big 2> /dev/null
exit 0
"""


@pytest.fixture
async def runner(anyio_backend: str) -> AsyncIterator[BubblewrapRunner]:
    """One's own: the descriptors of this process are counted, and a runner that lives on builds spares meanwhile."""
    async with BubblewrapRunner() as opened:
        yield opened


@pytest.fixture
def token() -> Iterator[str]:
    """Something for a command line; what still has it after the test is ended."""
    text = f"1000.{uuid.uuid4().int}"
    yield text
    for pid in processes_with(text):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _without(*controls: Control) -> Controls:
    return Controls(frozenset(controls))


async def _daemon(runner: BubblewrapRunner, token: str) -> ProcessExit:
    """Run a command that leaves a daemon of its own session behind, which nobody's pipe tells of."""
    leave = f"setsid -f sleep {token} < /dev/null > /dev/null 2>&1"
    return (await run_command(runner, Command(shell=leave))).exit


async def test_a_daemon_ends_with_its_command_which_is_checked(runner: BubblewrapRunner, token: str) -> None:
    exit_ = await _daemon(runner, token)
    assert exit_.processes_left == 0
    assert processes_with(token) == []


async def test_without_its_pid_namespace_a_daemon_is_found_and_told(anyio_backend: str, token: str) -> None:
    async with BubblewrapRunner(controls=_without(Control.PID)) as runner:
        told = "cgroup_tree" in runner._layers
        exit_ = await _daemon(runner, token)
        assert exit_.processes_left == (1 if told else None)
        if not told:
            await _until(lambda: bool(processes_with(token)))


async def test_without_pid_namespace_and_cgroup_a_daemon_outlives_its_command(anyio_backend: str, token: str) -> None:
    async with BubblewrapRunner(controls=_without(Control.PID, Control.CGROUP_TREE)) as runner:
        exit_ = await _daemon(runner, token)
        assert exit_.processes_left is None
        # Between two programs a process has no arguments for a moment.
        await _until(lambda: bool(processes_with(token)))


@pytest.mark.parametrize("end", ["kill", "leave"])
async def test_every_other_end_is_checked_too(runner: BubblewrapRunner, token: str, end: str) -> None:
    async with runner.start(launch_of(Command(shell=f"trap '' TERM; echo up; sleep {token}"))) as process:
        await read_until(process, Stream.STDOUT, b"up")
        if end == "kill":
            await process.kill()
            await process.wait()
            assert processes_with(token) == []
    assert (await process.wait()).processes_left == 0
    assert processes_with(token) == []


def _until_stopped(token: str) -> None:
    """Return when the shell that says the token, and what it started, stand still."""
    for pid in processes_with(token):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in ("bash", "sh", "sleep"):
                wait_stopped(pid)


async def test_what_stops_everything_is_still_ended(runner: BubblewrapRunner, token: str) -> None:
    stop = f"sleep {token} & echo up; kill -STOP -1 $$"
    async with runner.start(launch_of(Command(shell=stop))) as process:
        await read_until(process, Stream.STDOUT, b"up")
        await anyio.to_thread.run_sync(_until_stopped, token)
        await process.terminate()
        await process.kill()
        with anyio.fail_after(_BOUND_SECONDS):
            assert (await process.wait()).signal == signal.SIGKILL
    assert processes_with(token) == []


async def test_killing_everybody_ends_only_its_own_sandbox(runner: BubblewrapRunner, token: str) -> None:
    async with runner.start(launch_of(Command(shell=f"echo up; sleep {token}"))) as other:
        await read_until(other, Stream.STDOUT, b"up")
        finished = await run_command(runner, Command(shell="trap '' TERM; kill -TERM -1; kill -KILL -1; kill -KILL 0"))
        assert finished.exit.signal in (None, signal.SIGKILL)
        assert processes_with(token)
        assert (await run_command(runner, Command(shell="echo well"))).stdout == b"well\n"


_NOTE = "import fcntl, os; old = fcntl.fcntl(0, fcntl.F_GETFL); fcntl.fcntl(0, fcntl.F_SETFL, old | os.O_APPEND); "


async def test_an_empty_input_is_no_way_to_leave_a_note_for_the_next(anyio_backend: str) -> None:
    """Flags belong to an open file, which executions would share if they were given the same one."""
    async with BubblewrapRunner(spares=0) as runner:
        note = Command(argv=("python3", "-c", _NOTE + "print(old & os.O_APPEND, oct(os.fstat(0).st_mode), end='')"))
        found = {(await run_command(runner, note)).stdout.split()[0] for _ in range(2)}
    assert found == {b"0"}


def _server(token: str, *without: Control) -> tuple[subprocess.Popen[str], int]:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, token, ",".join(without)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline())


async def _kill_both(token: str, *without: Control) -> None:
    """SIGKILL to a server and to its launcher, so that nobody is left to clean up."""
    server, launcher = _server(token, *without)
    with server:
        sandboxed = processes_with(token)
        assert sandboxed
        pause(launcher)
        waiting = set(children(launcher)) - set(sandboxed)
        server.kill()
        os.kill(launcher, signal.SIGKILL)
    # Those that waited in it for a job hold its directory until they notice. In a container nobody may reap them.
    await _until(lambda: all(is_gone(pid) for pid in (launcher, *waiting)))


async def _until(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(_BOUND_SECONDS):
        # The kernel tells nobody but a parent; the wait is bounded.
        while not happened():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_killed_server_and_launcher_take_everything_along(anyio_backend: str, token: str) -> None:
    await _kill_both(token)
    await _until(lambda: not processes_with(token))


async def test_without_death_signals_the_next_start_ends_it_by_its_cgroup(anyio_backend: str, token: str) -> None:
    await _kill_both(token, Control.PARENT_DEATH_SIGNAL, Control.MARKED_PROCESSES)
    # Any server's start on this machine is the next one, so it may be gone already.
    async with BubblewrapRunner(spares=0) as runner:
        if "cgroup_tree" not in runner._layers:
            pytest.skip("NO CGROUP HERE: what the next start does is not shown")
        await _until(lambda: not processes_with(token))


async def test_without_death_signals_and_cgroup_the_next_start_ends_it_by_its_name(
    anyio_backend: str, token: str
) -> None:
    await _kill_both(token, Control.PARENT_DEATH_SIGNAL, Control.CGROUP_TREE)
    async with BubblewrapRunner(spares=0):
        await _until(lambda: not processes_with(token))


async def test_without_all_three_it_lives_on_after_the_next_start(anyio_backend: str, token: str) -> None:
    await _kill_both(token, Control.PARENT_DEATH_SIGNAL, Control.CGROUP_TREE, Control.MARKED_PROCESSES)
    async with BubblewrapRunner(spares=0):
        assert processes_with(token)


def test_bwrap_alone_leaves_orphans_when_it_is_killed_while_it_starts(token: str) -> None:
    """What the launcher is for: `test_a_kill_at_any_moment_of_the_start_leaves_no_orphan` is the other half."""
    bwrap = next(iter(candidates())).path
    options = ["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    for _ in range(_TRIES):
        with subprocess.Popen([bwrap, *options, "sleep", token], stderr=subprocess.DEVNULL) as process:
            while not (inner := children(process.pid)):
                assert process.poll() is None, "it ended by itself"
            process.kill()
        if any(_is_orphan(pid, token) for pid in inner):
            return
    pytest.fail(f"none of {_TRIES} kills left an orphan: nothing is shown")


def _is_orphan(pid: int, token: str) -> bool:
    try:
        return token.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and pid in processes_with(token)
    except OSError:
        return False


def _segments() -> list[str]:
    """Return the System V memory whose maker is gone; who has some and runs is somebody else (proc_sysvipc(5))."""
    lines = map(str.split, Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    return [segment for _, segment, _, _, maker, *_ in lines if is_gone(int(maker))]


def _rests(launcher: int) -> bool:
    """Whether a launcher waits for something to happen, with the three children that it keeps ready for the next start.

    Each has a descriptor; they are made in quiet moments, between which it has a few more.
    """
    state = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "S" and len(children(launcher)) == 3


async def _traces_at_rest(runner: BubblewrapRunner) -> dict[str, object]:
    """Return what was left behind at a moment at which the launcher did nothing, before and after the look."""
    assert runner._link is not None
    launcher = runner._link.pid
    found: dict[str, object] = {}

    def looked() -> bool:
        if not _rests(launcher):
            return False
        found.update(_traces(runner))
        return _rests(launcher)

    await _until(looked)
    return found


def _traces(runner: BubblewrapRunner) -> dict[str, object]:
    """What runs could leave behind: descriptors, mounts, directories, System V memory."""
    assert runner._link is not None
    return {
        "descriptors": open_descriptors(),
        "mounts": mount_table(),
        "launcher's descriptors": len(os.listdir(f"/proc/{runner._link.pid}/fd")),
        "runtime directory": sorted(os.listdir(runner._directory.path)),
        "shared memory": _segments(),
    }


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hundred_hostile_runs_leave_nothing(anyio_backend: str) -> None:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_processes=32, workspace_mb=1))
    hostile = Command(shell=_HOSTILE)
    async with BubblewrapRunner(spares=0) as runner:
        await run_command(runner, hostile, policy)
        before = await _traces_at_rest(runner)
        for _ in range(_RUNS):
            exit_ = (await run_command(runner, hostile, policy)).exit
            assert (exit_.reason, exit_.exit_code, exit_.processes_left) == (TerminationReason.EXITED, 0, 0)
        assert await _traces_at_rest(runner) == before
        assert runner._processes == {}
        assert runner._bounds.uids_in_use == 0
        folders = runner._walls.cgroups.directories
        await _until(lambda: all(sum(entry.is_dir() for entry in os.scandir(folder)) <= 3 for folder in folders))
