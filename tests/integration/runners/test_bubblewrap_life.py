"""Nothing that a sandbox started outlives it: kills at any moment, and the death of everybody around it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.runtime_directory import PREFIX, sweep
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import finish, launch_of, processes_with, read_until, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_KILLS = 100
_LONGEST_MILLISECONDS = 6
_BOUND_SECONDS = 20

_SERVER = """
import anyio, sys
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of

async def main():
    async with BubblewrapRunner(runtime_base=sys.argv[1]) as runner:
        script = f"trap '' TERM; (setsid sleep {sys.argv[2]} &); echo up; sleep {sys.argv[2]}"
        async with runner.start(launch_of(Command(shell=script))) as process:
            await process.read(Stream.STDOUT, 10)
            print("up", flush=True)
            await process.wait()

anyio.run(main)
"""


@pytest.fixture
def token() -> str:
    return f"1000.{uuid.uuid4().int}"


@pytest.fixture
def base() -> Iterator[str]:
    """A directory that every uid can reach, for runtime directories."""
    path = tempfile.mkdtemp(prefix="runner-tests-", dir="/tmp")
    os.chmod(path, 0o755)
    yield path
    os.rmdir(path)


@pytest.fixture
async def runner(anyio_backend: str, base: str) -> AsyncIterator[BubblewrapRunner]:
    async with BubblewrapRunner(runtime_base=base) as opened:
        yield opened
    assert os.listdir(base) == []


async def _gone(token: str) -> None:
    """Wait until no process of this machine has `token` in its command line."""
    with anyio.fail_after(_BOUND_SECONDS):
        # The kernel tells nobody but a parent; the wait is bounded.
        while processes_with(token):  # noqa: ASYNC110
            await anyio.sleep(0.01)


def _launcher_pid(runner: BubblewrapRunner) -> int:
    assert runner._link is not None
    return runner._link.pid


async def test_a_kill_at_any_moment_of_the_start_leaves_no_orphan(runner: BubblewrapRunner, token: str) -> None:
    chance = random.Random(7)
    for _ in range(_KILLS):
        async with runner.start(launch_of(Command(argv=("sleep", token)))) as process:
            with anyio.move_on_after(chance.uniform(0, _LONGEST_MILLISECONDS) / 1000):
                await process.wait()
            await process.kill()
            with anyio.fail_after(_BOUND_SECONDS):
                exit_ = await process.wait()
            assert exit_.signal == signal.SIGKILL
            assert processes_with(token) == []


async def test_a_killed_launcher_loses_its_runs_and_is_replaced(runner: BubblewrapRunner, token: str) -> None:
    async with runner.start(launch_of(Command(shell=f"echo up; sleep {token}"))) as process:
        await read_until(process, Stream.STDOUT, b"up")
        os.kill(_launcher_pid(runner), signal.SIGKILL)
        with anyio.fail_after(_BOUND_SECONDS):
            exit_ = await process.wait()
        assert exit_.reason is TerminationReason.LOST
        await _gone(token)
    assert (await run_command(runner, Command(shell="exit 4"))).exit.exit_code == 4


async def test_a_killed_server_leaves_no_process_and_no_directory(anyio_backend: str, base: str, token: str) -> None:
    async with await anyio.open_process([sys.executable, "-c", _SERVER, base, token], stderr=None) as server:
        assert server.stdout is not None
        with anyio.fail_after(_BOUND_SECONDS):
            assert (await server.stdout.receive()).startswith(b"up")
        assert processes_with(token)
        assert os.listdir(base)
        server.send_signal(signal.SIGKILL)
        await server.wait()
    with anyio.fail_after(_BOUND_SECONDS):
        # The server's own command line holds the token too, and it is gone by now.
        while processes_with(token) or os.listdir(base):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_a_directory_left_behind_is_swept_and_one_in_use_is_not(runner: BubblewrapRunner, base: str) -> None:
    in_use = os.listdir(base)
    left, held = os.path.join(base, f"{PREFIX}left"), os.path.join(base, f"{PREFIX}held")
    foreign = os.path.join(base, "other-directory")
    os.makedirs(os.path.join(left, "etc", "folder"))
    os.mkdir(held)
    os.mkdir(foreign)
    lock = os.open(held, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sweep(base)
    assert sorted(os.listdir(base)) == sorted([*in_use, os.path.basename(foreign), os.path.basename(held)])
    os.close(lock)
    sweep(base)
    os.rmdir(foreign)
    assert os.listdir(base) == in_use


async def test_leaving_the_runner_ends_what_still_runs(anyio_backend: str, base: str, token: str) -> None:
    async with BubblewrapRunner(runtime_base=base) as runner:
        context = runner.start(launch_of(Command(shell=f"echo up; sleep {token}")))
        process = await context.__aenter__()
        await read_until(process, Stream.STDOUT, b"up")
    assert processes_with(token) == []
    assert (await finish(process)).exit.reason is TerminationReason.LOST
    await context.__aexit__(None, None, None)
    assert os.listdir(base) == []
