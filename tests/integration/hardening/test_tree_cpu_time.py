"""CPU time is bounded for all processes of an execution together, where a cgroup counts it."""

from __future__ import annotations

import signal

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, launch_of, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

with open_cgroups(("memory", "pids")) as _seen:
    COUNTED, PROBLEMS = _seen.counts_cpu_time, dict(_seen.problems)

needs_counting = pytest.mark.skipif(
    not COUNTED, reason=f"NO CGROUP THAT COUNTS CPU TIME HERE ({PROBLEMS}): its bound for trees is not shown to hold"
)

_SHARE_SECONDS, _SHARES, _MANY = 0.3, 6, 40
_PROGRAM = f"""
import os, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        while time.process_time() < {_SHARE_SECONDS}:
            pass
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
print("done")
"""


async def run(runner: BubblewrapRunner, max_cpu_seconds: int | None, shares: int = _SHARES) -> Finished:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_cpu_seconds=max_cpu_seconds))
    return await run_command(runner, Command(argv=("python3", "-c", _PROGRAM, str(shares))), policy)


@needs_counting
async def test_many_processes_that_each_use_little_end_at_the_limit(runner: BubblewrapRunner) -> None:
    exit_ = (await run(runner, 1, _MANY)).exit
    assert (exit_.reason, exit_.signal) == (TerminationReason.CPU_TIME, signal.SIGKILL)
    (hit,) = exit_.limits_hit
    assert (hit.name, hit.limit) == ("max_cpu_seconds", 1)
    # All shares are 12 s; what is over the limit is what the cores do between two looks, and during the kill.
    assert 1 <= (hit.reached or 0) < _MANY * _SHARE_SECONDS / 2
    assert exit_.message is not None


@needs_counting
async def test_many_busy_processes_within_the_limit_or_without_one_are_left_alone(runner: BubblewrapRunner) -> None:
    for limit in (None, 60):
        finished = await run(runner, limit)
        assert finished.stdout == b"done\n"
        assert (finished.exit.reason, finished.exit.limits_hit) == (TerminationReason.EXITED, ())
        used = (finished.exit.user_cpu_seconds or 0) + (finished.exit.system_cpu_seconds or 0)
        assert used > _SHARES * _SHARE_SECONDS * 0.9


@needs_counting
async def test_without_the_count_the_limit_is_of_each_process_and_the_record_says_so(
    anyio_backend: str,
) -> None:
    """Also shows that the other test fails when nothing counts the tree."""
    limits = ExecutionPolicy(resource_limits=ResourceLimits(max_cpu_seconds=1))
    async with BubblewrapRunner() as runner, runner.start(launch_of(Command(argv=("true",)), limits)) as process:
        assert "whole tree" in process.isolation.limits["max_cpu_seconds"]
    async with BubblewrapRunner(controls=Controls(frozenset({Control.CGROUP_TREE}))) as runner:
        async with runner.start(launch_of(Command(argv=("true",)), limits)) as process:
            assert process.isolation.limits["max_cpu_seconds"] == "rlimit_cpu, per process"
        assert (await run(runner, 1)).stdout == b"done\n"
