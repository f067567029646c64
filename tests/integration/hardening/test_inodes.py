"""The number of files is bounded also where no cgroup bounds memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_walls import INODES_FOR_EACH_MIB
from sandbox_adapters.runners.child.inodes import PATHS
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, launch_of, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_FILL = """
import os
for directory in ("/workspace", "/tmp", "/dev/shm"):
    made = 0
    try:
        while made < 2000:
            os.close(os.open(f"{directory}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        print(directory, os.statvfs(directory).f_files, error.strerror, 0 < INODES - made < 20)
""".replace("INODES", str(INODES_FOR_EACH_MIB))
_WORKSPACE = ExecutionPolicy(resource_limits=ResourceLimits(workspace_mb=1))
_BOUNDED = [f"{directory} {INODES_FOR_EACH_MIB} No space left on device True" for directory in PATHS]


@pytest.fixture
async def without_cgroups(anyio_backend: str) -> AsyncIterator[BubblewrapRunner]:
    async with BubblewrapRunner(controls=Controls(frozenset({Control.CGROUP_TREE}))) as opened:
        yield opened


async def fill(runner: BubblewrapRunner, policy: ExecutionPolicy) -> Finished:
    finished = await run_command(runner, Command(argv=("python3", "-c", _FILL)), policy)
    assert finished.exit.exit_code == 0, (finished.stderr, finished.exit)
    return finished


async def test_every_private_file_system_is_bounded(without_cgroups: BubblewrapRunner) -> None:
    for _ in range(4):
        # The later ones are spares.
        assert (await fill(without_cgroups, _WORKSPACE)).stdout.decode().splitlines() == _BOUNDED


async def test_without_the_bound_they_can_be_made(without_cgroups: BubblewrapRunner) -> None:
    assert (await fill(without_cgroups, ExecutionPolicy())).stdout == b""


async def test_the_record_says_what_bounds_them(without_cgroups: BubblewrapRunner) -> None:
    both = ExecutionPolicy(resource_limits=ResourceLimits(workspace_mb=2, max_memory_mb=100))
    async with without_cgroups.start(launch_of(Command(argv=("true",)), both)) as process:
        assert f"{INODES_FOR_EACH_MIB} files for each MiB of it" in process.isolation.limits["workspace_mb"]
    async with BubblewrapRunner() as runner:
        if not runner._walls.bounds_memory:
            pytest.skip("NO MEMORY CONTROLLER HERE: that it bounds files is not shown")
        async with runner.start(launch_of(Command(argv=("true",)), both)) as process:
            assert "files as max_memory_mb" in process.isolation.limits["workspace_mb"]


async def test_a_kill_at_any_moment_of_the_preparation_ends_it(without_cgroups: BubblewrapRunner) -> None:
    for tenths in range(30):
        with anyio.fail_after(60):
            async with without_cgroups.start(launch_of(Command(argv=("sleep", "100")), _WORKSPACE)) as process:
                with anyio.move_on_after(tenths / 2000):
                    await process.wait()
                await process.kill()
                assert (await process.wait()).reason is TerminationReason.SIGNALED
