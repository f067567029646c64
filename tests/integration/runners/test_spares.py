"""A sandbox built ahead shows a command the same as one built for it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import finish, launch_of, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

POLICY = ExecutionPolicy(
    resource_limits=ResourceLimits(
        max_memory_mb=512, max_cpu_seconds=20, max_file_size_mb=8, max_processes=50, max_open_files=128, workspace_mb=16
    )
)
LOOK = """
env | sort; pwd; id; umask; ls -l /proc/self/fd | awk '{print $9, $10, $11}' | sed 's/[0-9]\\{4,\\}/N/'
cat /proc/self/limits; grep -E 'NoNewPrivs|Seccomp|Cap|Sig[BIC]' /proc/self/status
sed 's/id=[0-9]*//g' /proc/mounts; ls -A / /workspace /tmp; set -- /proc/[0-9]*; echo $#; trap; set -o | grep -v history
"""


@asynccontextmanager
async def open_warm(spares: int = 2) -> AsyncIterator[BubblewrapRunner]:
    """Yield a runner whose spares wait."""
    async with BubblewrapRunner(spares=spares) as runner:
        for _ in range(2):
            await run_command(runner, Command(shell="true"), POLICY)
        with anyio.fail_after(60):
            # Nobody tells of a spare; the wait is bounded.
            while spares and ready(runner) < spares:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        yield runner


def ready(runner: BubblewrapRunner) -> int:
    assert runner._spares is not None
    return len(runner._spares._ready)


@pytest.mark.parametrize("environment", [{}, {"NAME": "a 'b' $c\nd", "LANG": "C"}])
async def test_a_command_sees_no_difference(environment: dict[str, str]) -> None:
    command = Command(shell=LOOK, environment=environment)
    async with open_warm(spares=0) as runner:
        cold = await run_command(runner, command, POLICY)
    async with open_warm() as runner:
        before = ready(runner)
        warm = await run_command(runner, command, POLICY)
        assert before == 2
    assert cold.stdout.decode() == warm.stdout.decode()
    assert cold.stderr == warm.stderr == b""


async def test_every_spare_has_a_uid_of_its_own_and_is_used_once() -> None:
    async with open_warm() as runner:
        uids = set()
        for _ in range(6):
            async with runner.start(launch_of(Command(shell="touch here; ls"), POLICY)) as process:
                uids.add(process.isolation.kernel_uid)
                assert (await finish(process)).stdout == b"here\n"
    assert len(uids) == (6 if os.geteuid() == 0 else 1)


async def test_a_program_that_does_not_exist_is_told_the_same_way() -> None:
    async with open_warm() as runner:
        finished = await run_command(runner, Command(argv=("no-such-program",)), POLICY)
    assert (finished.exit.exit_code, finished.stderr) == (127, b"sandbox: no-such-program: command not found\n")


async def test_a_spare_killed_while_it_waits_costs_no_command() -> None:
    async with open_warm() as runner:
        assert runner._spares is not None
        for spare in list(runner._spares._ready):
            await spare.kill()
            await spare.wait()
        finished = await run_command(runner, Command(shell="echo fine"), POLICY)
        assert finished.stdout == b"fine\n"


async def test_the_launchers_death_costs_only_the_spares() -> None:
    async with open_warm() as runner:
        link = runner._link
        assert link is not None
        os.kill(link.pid, signal.SIGKILL)
        with anyio.fail_after(60):
            while link.alive:  # noqa: ASYNC110 - nor of this
                await anyio.sleep(0.005)
        finished = await run_command(runner, Command(shell="echo fine"), POLICY)
        assert finished.stdout == b"fine\n"


async def test_a_graceful_end_reaches_a_command_in_a_spare() -> None:
    async with open_warm() as runner:
        script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"
        async with runner.start(launch_of(Command(shell=script), POLICY)) as process:
            assert await process.read(Stream.STDOUT, 100) == b"up\n"
            await process.terminate()
            finished = await finish(process)
    assert (finished.stdout, finished.exit.exit_code) == (b"bye\n", 5)


async def test_limits_hold_in_a_spare() -> None:
    async with open_warm() as runner:
        full = await run_command(runner, Command(shell="head -c 20000000 /dev/zero > big"), POLICY)
        assert full.exit.limits_hit[0].name == "max_file_size_mb" or b"No space left" in full.stderr
