"""SparePool and the script that a spare becomes a command by."""

from __future__ import annotations

import shlex
import shutil
import subprocess  # noqa: TID251 - the shell is what is tested
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_adapters.runners.spare_script import MAX_SCRIPT_BYTES, SPARE_ARGV, script_for
from sandbox_adapters.runners.spares import SparePool
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import LaunchFailed
from sandbox_core.domain.policy import ResourceLimits
from sandbox_core.ports.runner import Launch

PATH = "/usr/local/bin:/usr/bin:/bin"
PRINT = "import os, sys; sys.stdout.buffer.write(repr((sys.argv[1:], os.environ.get('SAID'))).encode())"
# A shell can be given every character but NUL.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
SMALL, LARGE = ResourceLimits(max_memory_mb=64), ResourceLimits(max_memory_mb=128)


@given(TEXT, TEXT)
@settings(max_examples=40, deadline=None)
def test_the_shell_hands_over_every_argument_and_variable_unchanged(argument: str, value: str) -> None:
    program = shlex.join([sys.executable, "-I", "-c", PRINT, argument])
    script = script_for(Command(shell=program, environment={"SAID": value}), "/bin/sh", PATH)
    assert script is not None
    done = subprocess.run(SPARE_ARGV, input=script, capture_output=True, check=True)
    assert eval(done.stdout.decode()) == ([argument], value)


def test_argv_becomes_exactly_that_program() -> None:
    script = script_for(Command(argv=("printf", "%s|", "a b", "$HOME", "'", "-n", "")), "/bin/sh", PATH)
    assert script is not None
    done = subprocess.run(SPARE_ARGV, input=script, capture_output=True, check=True)
    assert done.stdout == b"a b|$HOME|'|-n||"


@pytest.mark.parametrize(
    "command",
    [
        Command(shell="cat", stdin=b"x"),
        Command(shell="cat", interactive=True),
        Command(shell="pwd", working_directory="/tmp"),
        Command(shell="x", environment={"PATH": "/x"}),
        Command(shell="x", environment={"IFS": "/"}),
        Command(shell="x" * MAX_SCRIPT_BYTES),
        Command(argv=("no-such-program",)),
        Command(argv=("cd", "/tmp")),
        Command(argv=("./x",)),
        Command(argv=("/etc/passwd",)),
        Command(argv=("/usr/../etc/passwd",)),
        Command(argv=("-x",)),
    ],
)
def test_what_a_waiting_shell_would_do_otherwise_gets_a_start_of_its_own(command: Command) -> None:
    assert script_for(command, "/bin/sh", PATH) is None


def test_no_variable_is_changed_where_the_shell_is_bash() -> None:
    """As on Fedora and its relatives; Debian's dash, which `SPARE_ARGV` runs here, has few of its own."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    listed = subprocess.run([bash, "-c", "compgen -v"], env={}, capture_output=True, text=True, check=True)
    changed = []
    for name in listed.stdout.split():
        script = script_for(Command(argv=("env",), environment={name: "5x"}), "/bin/sh", PATH)
        if script is not None:
            done = subprocess.run(["sh", *SPARE_ARGV[1:]], executable=bash, input=script, capture_output=True)
            if f"{name}=5x" not in done.stdout.decode().splitlines():
                changed.append(name)
    assert changed == []


@dataclass(eq=False)
class FakeSpare:
    """A spare that only counts."""

    limits: ResourceLimits
    usable: bool = True
    ended: bool = False


class Builder:
    """Builds fake spares."""

    def __init__(self) -> None:
        self.built: list[FakeSpare] = []
        self.failing = False

    async def build(self, launch: Launch) -> FakeSpare:
        await anyio.lowlevel.checkpoint()
        if self.failing:
            raise LaunchFailed("no processes left")
        self.built.append(FakeSpare(launch.policy.resource_limits))
        return self.built[-1]

    async def end(self, spare: FakeSpare) -> None:
        await anyio.lowlevel.checkpoint()
        spare.ended = True

    def waiting(self, taken: list[FakeSpare | None]) -> int:
        return sum(not spare.ended for spare in self.built) - sum(spare is not None for spare in taken)


@asynccontextmanager
async def open_pool(builder: Builder, size: int = 2, pause_seconds: float = 0) -> AsyncIterator[SparePool[FakeSpare]]:
    async with anyio.create_task_group() as tasks:
        pool = SparePool(size, build=builder.build, end=builder.end, tasks=tasks, pause_seconds=pause_seconds)
        yield pool
        await pool.aclose()


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_spares_are_built_for_limits_asked_twice_in_a_row_and_used_once() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        assert pool.take(SMALL) is None
        await settle()
        assert builder.built == []
        assert pool.take(SMALL) is None
        await settle()
        first, second = pool.take(SMALL), pool.take(SMALL)
        assert first is not None
        assert second is not None
        assert first is not second
        assert pool.take(SMALL) is None
        await settle()
        assert builder.waiting([first, second]) == 2
    assert not first.ended
    assert all(spare.ended for spare in builder.built if spare not in (first, second))


@pytest.mark.anyio
async def test_none_is_built_beside_a_command_that_has_only_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, paused, is_over = Builder(), list[float](), anyio.Event()

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        await is_over.wait()

    monkeypatch.setattr("sandbox_adapters.runners.spares.anyio.sleep", pause)
    async with open_pool(builder, pause_seconds=0.05) as pool:
        pool.take(SMALL)
        pool.take(SMALL)
        await settle()
        assert (builder.built, paused) == ([], [0.05])
        is_over.set()
        with anyio.fail_after(30):
            while pool.waiting < 2:
                await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_a_change_of_limits_drops_the_spares_and_never_hands_out_the_wrong_one() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        for _ in range(2):
            pool.take(SMALL)
        await settle()
        assert pool.take(LARGE) is None
        assert pool.take(LARGE) is None
        await settle()
        taken = pool.take(LARGE)
        assert taken is not None
        assert taken.limits == LARGE
        assert all(spare.ended for spare in builder.built if spare.limits == SMALL)


@pytest.mark.anyio
async def test_limits_that_only_the_supervisor_holds_share_spares() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        for seconds in (1, 2):
            pool.take(ResourceLimits(max_memory_mb=64, timeout_seconds=seconds, max_output_bytes=seconds))
        await settle()
        assert pool.take(ResourceLimits(max_memory_mb=64, idle_timeout_seconds=9)) is not None


@pytest.mark.anyio
async def test_a_spare_that_died_is_not_handed_out() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        for _ in range(2):
            pool.take(SMALL)
        await settle()
        for spare in builder.built:
            spare.usable = False
        assert pool.take(SMALL) is None
        await settle()
        assert pool.take(SMALL) is not None


@pytest.mark.anyio
async def test_a_failure_to_build_costs_only_the_spare() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        builder.failing = True
        for _ in range(3):
            assert pool.take(SMALL) is None
            await settle()
        builder.failing = False
        pool.take(SMALL)
        await settle()
        assert pool.take(SMALL) is not None


@pytest.mark.anyio
async def test_a_busy_machine_uses_up_its_spares_and_builds_no_more() -> None:
    builder = Builder()
    async with open_pool(builder) as pool:
        for _ in range(2):
            pool.take(SMALL)
        await settle()
        assert pool.waiting == 2
        for left in (1, 0, 0):
            pool.take(SMALL, refill=False)
            await settle()
            assert pool.waiting == left
        pool.take(SMALL)
        await settle()
        assert pool.waiting == 2


@pytest.mark.anyio
async def test_size_zero_builds_nothing() -> None:
    builder = Builder()
    async with open_pool(builder, size=0) as pool:
        for _ in range(5):
            assert pool.take(SMALL) is None
            await settle()
    assert builder.built == []
