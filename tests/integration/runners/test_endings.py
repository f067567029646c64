"""A command is asked, given time and killed the same way in a sandbox of its own and in one that was built ahead."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import finish, launch_of, processes_with, read_until, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

with open_cgroups(("memory", "pids")) as _seen:
    FOUND = frozenset(_seen.controllers)

POLICY = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=512, max_processes=50, workspace_mb=16))
_BOUND_SECONDS = 60
_ASKED = """
(trap 'echo child; exit 0' TERM; echo one; while :; do sleep 0.02; done) &
trap 'wait; echo parent; exit 5' TERM; echo two; while :; do sleep 0.02; done
"""


@pytest.fixture(params=[0, 2], ids=["cold", "spare"])
async def runner(anyio_backend: str, request: pytest.FixtureRequest) -> AsyncIterator[BubblewrapRunner]:
    spares: int = request.param
    async with BubblewrapRunner(spares=spares) as opened:
        for _ in range(2):
            await run_command(opened, Command(argv=("true",)), POLICY)
        with anyio.fail_after(_BOUND_SECONDS):
            # Nobody tells of a spare; the wait is bounded.
            while opened._spares is not None and opened._spares.waiting < spares:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        yield opened


async def test_every_process_of_the_group_is_asked_and_may_clean_up(runner: BubblewrapRunner) -> None:
    with anyio.fail_after(_BOUND_SECONDS):
        async with runner.start(launch_of(Command(shell=_ASKED), POLICY)) as process:
            text = await read_until(process, Stream.STDOUT, b"one")
            if b"two" not in text:
                await read_until(process, Stream.STDOUT, b"two")
            await process.terminate()
            finished = await finish(process)
    assert finished.stdout.split() == [b"child", b"parent"]
    assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, 5)


async def test_who_does_not_listen_lives_on_until_the_kill(runner: BubblewrapRunner) -> None:
    token = f"1000.{uuid.uuid4().int}"
    script = f"trap '' TERM; (setsid sleep {token} &); echo up; while :; do sleep 0.02; echo alive; done"
    with anyio.fail_after(_BOUND_SECONDS):
        async with runner.start(launch_of(Command(shell=script), POLICY)) as process:
            await read_until(process, Stream.STDOUT, b"up")
            await process.terminate()
            for _ in range(5):
                await read_until(process, Stream.STDOUT, b"alive")
            await process.kill()
            finished = await finish(process)
            assert processes_with(token) == []
    assert (finished.exit.reason, finished.exit.signal) == (TerminationReason.SIGNALED, signal.SIGKILL)


async def test_a_kill_asks_nobody(runner: BubblewrapRunner) -> None:
    script = "trap 'echo asked' TERM EXIT; echo up; while :; do sleep 0.02; done"
    with anyio.fail_after(_BOUND_SECONDS):
        async with runner.start(launch_of(Command(shell=script), POLICY)) as process:
            await read_until(process, Stream.STDOUT, b"up")
            await process.kill()
            finished = await finish(process)
    assert (finished.stdout, finished.exit.signal) == (b"", signal.SIGKILL)


async def test_what_it_used_is_known_in_full(runner: BubblewrapRunner) -> None:
    program = "import time\nheld = b'x' * (32 << 20)\nwhile time.process_time() < 0.1: pass"
    used = (await run_command(runner, Command(argv=("python3", "-c", program)), POLICY)).exit
    assert used.exit_code == 0
    assert (used.user_cpu_seconds or 0) + (used.system_cpu_seconds or 0) > 0.09
    assert (used.max_rss_bytes or 0) > 32 << 20
    assert (used.peak_memory_bytes is not None) is ("memory" in FOUND)
    assert (used.peak_processes is not None) is ("pids" in FOUND)
    assert used.peak_memory_bytes is None or used.peak_memory_bytes > 32 << 20
    assert used.peak_processes in (1, 2, None)
    assert used.network_sent_bytes is None
