"""The largest limits that a policy can name, and a server with a low one of its own: commands run all the same."""

from __future__ import annotations

import os
import resource
from dataclasses import fields

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import LARGEST_LIMIT, ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import launch_of, run_command
from tests.integration.attacks.conftest import identity, python_for

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_LOW = 300
_SERVER = f"""
import resource
import anyio
from tests.integration.runners.test_extreme_limits import look
resource.setrlimit(resource.RLIMIT_NPROC, ({_LOW}, {_LOW}))
anyio.run(look)
"""
_AS_ROOT = [pytest.param(True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")), False]


async def look() -> None:
    """Print what commands know of their limit of processes, as whoever this process is."""
    async with BubblewrapRunner(spares=0) as runner:
        for asked in (None, 100, 4096):
            policy = ExecutionPolicy(resource_limits=ResourceLimits(max_processes=asked))
            exit_ = (finished := await run_command(runner, Command(shell="ulimit -Hu"), policy)).exit
            print(exit_.message or finished.stdout.decode().strip())  # noqa: T201 - to the test that started it


async def test_the_largest_limits_let_a_command_run_and_harm_no_other(runner: BubblewrapRunner) -> None:
    sleeper = launch_of(Command(argv=("sleep", "1000")))
    async with runner.start(sleeper) as neighbour:
        for item in fields(ResourceLimits):
            policy = ExecutionPolicy(resource_limits=ResourceLimits(**{item.name: LARGEST_LIMIT}))
            finished = await run_command(runner, Command(shell="sleep 0; echo ran"), policy)
            assert (item.name, finished.stdout, finished.exit.message) == (item.name, b"ran\n", None)
        await neighbour.kill()
        assert (await neighbour.wait()).reason is TerminationReason.SIGNALED


@pytest.mark.parametrize("root", _AS_ROOT)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_may_have_few_processes_gives_commands_no_more(root: bool, anyio_backend: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if hard != resource.RLIM_INFINITY and hard <= _LOW:
        pytest.skip("this server may have few itself")
    with anyio.fail_after(100):
        done = await anyio.run_process([python_for(root=root), "-c", _SERVER], check=False, **identity(root=root))
    assert done.returncode == 0, done.stderr.decode()
    told = [int(line) for line in done.stdout.split()]
    assert told[0] == told[2] == _LOW
    assert 100 < told[1] < 110
