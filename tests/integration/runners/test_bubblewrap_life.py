"""Nothing that a sandbox started outlives it: kills at any moment, and the death of everybody around it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.runtime_directory import PREFIX, sweep
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, NetworkPolicy
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import finish, launch_of, processes_with, read_until, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_KILLS = 100
_LONGEST_MILLISECONDS = 6
_BOUND_SECONDS = 60
_LOOKS = 20

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

_INTERRUPT_SECONDS = 15
"""Under the twenty that answers of nobody were waited for."""
_INTERRUPTED = """
import anyio, sys
from sandbox_adapters import Settings, open_sandbox

async def main():
    async with open_sandbox(Settings(kill_grace_seconds=1000)) as sandbox:
        started = await sandbox.submit(f"trap '' TERM; echo up; sleep {sys.argv[1]}")
        try:
            await sandbox.service.wait(sandbox.principal, started, after=1)
            print("up", flush=True)
            await anyio.sleep_forever()
        finally:
            print("interrupted", flush=True)

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


async def _held(token: str) -> None:
    """Wait until a sandbox's pid 1 for a command with `token` sleeps whenever it is looked at."""
    asleep = 0
    with anyio.fail_after(_BOUND_SECONDS):
        while asleep < _LOOKS:
            asleep = asleep + 1 if any(_sleeping_init(pid) for pid in processes_with(token)) else 0
            await anyio.sleep(0.01)


def _sleeping_init(pid: int) -> bool:
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return False
    numbers = fields["NSpid"].split()
    return len(numbers) > 1 and numbers[-1] == "1" and fields["State"].split()[0] == "S"


def _end(token: str) -> list[int]:
    """Kill what has `token` in its command line, and return which that was; who ended with its pid 1 needs no kill."""
    left = processes_with(token)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


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


@pytest.mark.parametrize("without", [(), (Control.MARKED_PROCESSES,)], ids=["as it is", "without names"])
async def test_a_killed_launcher_leaves_nobody_whom_no_signal_of_the_kernel_ends(
    anyio_backend: str, base: str, token: str, without: tuple[Control, ...]
) -> None:
    """As a sandbox that bwrap was just making: its pid 1 asks for that signal late."""
    controls = Controls(frozenset({Control.PARENT_DEATH_SIGNAL, *without}))
    async with (
        BubblewrapRunner(runtime_base=base, controls=controls, spares=0) as runner,
        runner.start(launch_of(Command(shell=f"echo up; sleep {token}"))) as process,
    ):
        await read_until(process, Stream.STDOUT, b"up")
        os.kill(_launcher_pid(runner), signal.SIGKILL)
        with anyio.fail_after(_BOUND_SECONDS):
            assert (await process.wait()).reason is TerminationReason.LOST
        assert bool(_end(token)) == bool(without)


@pytest.fixture
def silent_bwrap(base: str) -> Iterator[Callable[[bytes], bytes]]:
    """Makes a bwrap that tells nobody of the sandbox's pid 1, so that it is held back for ever."""
    path = Path(base, "silent-bwrap")

    def make(program: bytes) -> bytes:
        path.write_text(f'#!/bin/sh\nexec {os.fsdecode(program)} "$@" 4> /dev/null\n')
        path.chmod(0o755)
        return os.fsencode(path)

    yield make
    path.unlink()


async def test_a_sandbox_that_is_held_back_never_starts_because_its_launcher_died(
    anyio_backend: str, base: str, token: str, silent_bwrap: Callable[[bytes], bytes]
) -> None:
    async with BubblewrapRunner(runtime_base=base, spares=0) as runner:
        assert runner._program is not None
        runner._program = replace(runner._program, path=silent_bwrap(runner._program.path))
        policy = ExecutionPolicy(network=NetworkPolicy(allowed_domains=("example.com",)))
        process = await runner._launch(launch_of(Command(argv=("echo", token)), policy))
        await _held(token)
        os.kill(_launcher_pid(runner), signal.SIGKILL)
        with anyio.fail_after(_BOUND_SECONDS):
            assert (await process.wait()).reason is TerminationReason.LOST
        left = _end(token)
        printed = await process.read(Stream.STDOUT, 100)
        await runner._retire(process)
        assert (bool(left), printed) == (True, b"")


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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has cancel scopes alone
@pytest.mark.parametrize("names", [(), ("a.example",)])
async def test_asyncio_s_own_cancellation_while_a_process_is_left_keeps_no_descriptor_open(
    runner: BubblewrapRunner, token: str, names: tuple[str, ...]
) -> None:
    async def start_and_leave() -> None:
        command = Command(argv=("sleep", token), interactive=True)
        async with runner.start(replace(launch_of(command), policy=policy)):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    policy = ExecutionPolicy(network=NetworkPolicy(allowed_domains=names))
    before = _pipes_and_sockets()
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(start_and_leave())
    await _gone(token)
    with anyio.fail_after(_BOUND_SECONDS):
        # A proxy may still be ending; the kernel tells nobody of it.
        while _pipes_and_sockets() > before:  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has cancel scopes alone
async def test_a_second_interrupt_ends_a_program_of_asyncio_at_once(base: str, token: str) -> None:
    argv = [sys.executable, "-c", _INTERRUPTED, token]
    with anyio.fail_after(_BOUND_SECONDS):
        async with await anyio.open_process(argv, env={**os.environ, "TMPDIR": base}, stderr=None) as program:
            assert program.stdout is not None
            for word in (b"up", b"interrupted"):
                assert word in await program.stdout.receive()
                # In the midst of a task Python raises it there, and anyio takes it for that task's end alone.
                await _waiting(program.pid)
                program.send_signal(signal.SIGINT)
            with anyio.fail_after(_INTERRUPT_SECONDS):
                await program.wait()
    await _gone(token)
    assert os.listdir(base) == []


async def _waiting(pid: int) -> None:
    """Return when a process sleeps, and has for a fifth of a second."""
    before = None
    while (now := _sleep_of(pid)) is None or now != before:
        before = now
        await anyio.sleep(0.2)


def _sleep_of(pid: int) -> list[str] | None:
    """Return what tells one sleep of a process from the next (proc_pid_status(5)); None while it does not sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if "ctxt_switches" in line] if "State:\tS (sleeping)" in lines else None


def _pipes_and_sockets() -> int:
    """Count what of this process is open and no file."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith(("pipe:", "socket:")) for link in links)
