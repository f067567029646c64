"""Memory in every shape counts for the execution that uses it, and what the kernel kills for it is never the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess  # noqa: TID251 - a server in a small cgroup of its own
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.hardening.cgroup_leaf import Leaf, TreeLimits
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, run_command

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

with open_cgroups(("memory", "pids")) as _seen:
    FOUND, PROBLEMS = frozenset(_seen.controllers), dict(_seen.problems)

needs_memory = pytest.mark.skipif(
    "memory" not in FOUND, reason=f"NO MEMORY CONTROLLER HERE ({PROBLEMS}): its bound for trees is not shown to hold"
)

_MIB = 1 << 20
_EMPTY_FILES = """
import os, sys
for number in range(int(sys.argv[2])):
    os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY))
print("made")
"""
_OUTER_BYTES = 160 * _MIB
_SERVER_BYTES = 60 * _MIB
_SERVER = f"""
import anyio, json, os, sys
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import run_command

OWN = bytearray(os.urandom(4096)) * ({_SERVER_BYTES} // 4096)

async def main():
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=2000, workspace_mb=1000))
    without = Controls(frozenset(map(Control, sys.argv[2:])))
    async with BubblewrapRunner(spares=0, controls=without) as runner:
        await run_command(runner, Command(argv=("true",)))
        launcher = runner._link.pid
        for argv in json.loads(sys.argv[1]):
            exit_ = (await run_command(runner, Command(argv=argv), policy)).exit
            after = (await run_command(runner, Command(argv=("echo", "fine")), policy)).stdout.decode()
            same = runner._link.pid == launcher and runner._link.alive
            answer = [exit_.reason, exit_.exit_code, exit_.message, len(exit_.limits_hit), after, same]
            print(json.dumps(answer), flush=True)

anyio.run(main)
"""
_FORK = """
import os, signal
for _ in range(20):
    if os.fork() == 0:
        held = os.urandom(30 << 20)
        signal.pause()
os.wait()
exit(3)
"""
_BOMBS = {
    name: ("python3", "-c", program)
    for name, program in (
        ("one process", "import os; held = [os.urandom(1 << 20) for _ in range(1000)]"),
        ("files", "import os\nwith open('/tmp/x', 'wb') as f:\n while True: f.write(os.urandom(1 << 20))"),
        ("anonymous files", "import os; f = os.memfd_create('x')\nwhile True: os.write(f, os.urandom(1 << 20))"),
        ("many processes", _FORK),
    )
}


def score_adjustment(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def make_files(runner: BubblewrapRunner, directory: str, count: int, max_memory_mb: int | None) -> Finished:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=max_memory_mb, workspace_mb=256))
    return await run_command(runner, Command(argv=("python3", "-c", _EMPTY_FILES, directory, str(count))), policy)


@needs_memory
@pytest.mark.anyio
@pytest.mark.parametrize("directory", ["/workspace", "/tmp", "/dev/shm"])
async def test_empty_files_count_as_memory(runner: BubblewrapRunner, directory: str) -> None:
    """They have no bytes, but each costs the kernel about 1 KiB: the limit of memory is the limit of inodes."""
    finished = await make_files(runner, directory, 10_000_000, 32)
    assert finished.exit.reason is TerminationReason.MEMORY
    (hit,) = finished.exit.limits_hit
    assert (hit.name, hit.limit) == ("max_memory_mb", 32)
    assert 32 <= (hit.reached or 0) <= 42


@needs_memory
@pytest.mark.anyio
async def test_as_many_empty_files_as_the_memory_holds_can_be_made(runner: BubblewrapRunner) -> None:
    # What ended the other test is the limit, since without it, or with a larger one, they can be made.
    for limit in (None, 128):
        finished = await make_files(runner, "/workspace", 50_000, limit)
        assert (finished.stdout, finished.exit.limits_hit) == (b"made\n", ())
        assert 50_000 * 500 < (finished.exit.peak_memory_bytes or 0) < 50_000 * 2000


@pytest.mark.anyio
async def test_a_command_cannot_save_itself_from_the_kernels_choice(runner: BubblewrapRunner) -> None:
    script = "echo 0 > /proc/self/oom_score_adj; echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    assert (await run_command(runner, Command(shell=script))).stdout == b"900\n"
    assert runner._link is not None
    assert max(map(score_adjustment, (os.getpid(), runner._link.pid))) < 900


@pytest.fixture
def small() -> Iterator[Leaf]:
    """A cgroup with little memory, for a server and all that it starts."""
    with open_cgroups(("memory",)) as cgroups:
        leaf = cgroups.make_leaf("small")
        leaf.limit(TreeLimits(memory_bytes=_OUTER_BYTES))
        yield leaf


def run_server(small: Leaf, bombs: Iterable[Sequence[str]], *without: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", _SERVER, json.dumps(list(bombs)), *without]
    # Attached before it is Python: what it allocates counts, and its own cgroups are made below.
    script = 'for file in $1; do echo $$ > "$file"; done; shift; exec "$@"'
    files = " ".join(f"{directory}/cgroup.procs" for directory in small.directories)
    return subprocess.run(
        ["sh", "-c", script, "sh", files, *arguments], capture_output=True, text=True, timeout=200, check=False
    )


@needs_memory
def test_where_the_servers_own_memory_ends_the_command_dies_and_not_the_server(small: Leaf) -> None:
    done = run_server(small, _BOMBS.values())
    assert done.returncode == 0, (done.stdout, done.stderr)
    answers = dict(zip(_BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))
    for name, (reason, code, message, hits, after, same) in answers.items():
        assert (reason, hits) == ("memory", 0), (name, code, message)
        assert "not at a limit of its own" in message, name
        assert (after, same) == ("fine\n", True), name


@needs_memory
def test_it_is_the_score_that_keeps_the_server_alive(small: Leaf) -> None:
    done = run_server(small, [_BOMBS["many processes"]], "oom_score")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr
