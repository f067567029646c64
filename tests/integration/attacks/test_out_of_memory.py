"""When memory runs out around a server and its executions, the kernel never takes the server.

A cgroup of the test's own stands for the machine. The executions have none of their own here, so that what the kernel
chooses from is all that there is; the server is the biggest of them all.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess  # noqa: TID251 - a server that can be killed
import sys
from collections.abc import Iterator

import pytest

from sandbox_adapters.runners.controls import Control
from sandbox_adapters.runners.hardening.cgroup_leaf import Leaf
from sandbox_adapters.runners.hardening.cgroup_paths import write
from sandbox_adapters.runners.hardening.cgroups import open_cgroups

pytestmark = pytest.mark.integration

_MIB = 1 << 20
_MACHINE_MIB, _SERVER_MIB, _EACH_MIB, _PROCESSES = 224, 96, 24, 10
_SECONDS = 100
_PAYLOAD = f"""
import os, signal
for _ in range({_PROCESSES}):
    if os.fork() == 0:
        held = b"x" * ({_EACH_MIB} << 20)
        os.write(1, b"1")
        signal.pause()
killed = 0
while killed < 3:
    killed += os.WIFSIGNALED(os.wait()[1])
"""
_SERVER = """
import anyio, sys
sys.stdin.readline()
held = b"x" * (int(sys.argv[1]) << 20)
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.testing.runner_harness import run_command

async def main():
    controls = Controls(frozenset(Control(name) for name in sys.argv[3].split(",")))
    async with BubblewrapRunner(controls=controls, spares=0) as runner:
        await run_command(runner, Command(argv=("python3", "-c", sys.argv[2])))
        print("still here", flush=True)

anyio.run(main)
"""


@pytest.fixture
def machine() -> Iterator[Leaf]:
    """A cgroup with little memory and no swap."""
    with open_cgroups(("memory",)) as cgroups:
        if "memory" not in cgroups.controllers:
            pytest.skip(f"NO MEMORY CGROUP HERE ({dict(cgroups.problems)}): who is killed is not shown")
        leaf = cgroups.make_leaf("machine")
        amount = str(_MACHINE_MIB * _MIB)
        for directory in leaf.directories:
            for name, value in (
                ("memory.limit_in_bytes", amount), ("memory.memsw.limit_in_bytes", amount),
                ("memory.max", amount), ("memory.swap.max", "0"),
            ):  # fmt: skip
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    write(f"{directory}/{name}", value)
        yield leaf
        leaf.kill()


def _serve(machine: Leaf, *without: Control) -> tuple[int, str]:
    program = [sys.executable, "-c", _SERVER, str(_SERVER_MIB), _PAYLOAD, ",".join(without)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            machine.attach(server.pid)
            output, _ = server.communicate("go\n", timeout=_SECONDS)
        finally:
            server.kill()
    return server.returncode, output


def test_a_server_outlives_executions_that_take_all_memory(machine: Leaf) -> None:
    assert _serve(machine, Control.CGROUP_TREE) == (0, "still here\n")
    assert (machine.usage().oom_kills or 0) >= 3


def test_without_their_score_the_server_is_taken(machine: Leaf) -> None:
    assert _serve(machine, Control.CGROUP_TREE, Control.OOM_SCORE) == (-signal.SIGKILL, "")
