"""Test your own application without starting a process: scripted commands, time that you move, contract suites."""

from collections.abc import Callable
from contextlib import aclosing

import anyio
import pytest

from sandbox_adapters import Sandbox, Settings, open_sandbox
from sandbox_adapters.clock import SystemClock
from sandbox_core.testing import FakeClock, Pause, Print, Script, ScriptedRunner
from sandbox_core.testing.clock_contract import ClockContract, PassTime


async def report_of_build(sandbox: Sandbox) -> str:
    """The application under test: it runs a build and says what came of it."""
    result = await sandbox.run("make test", timeout_seconds=30)
    return "green" if result.ok else f"red: {result.error_text.strip()}"


@pytest.mark.anyio
async def test_a_failed_build_is_reported_red() -> None:
    runner = ScriptedRunner({"make test": Script(stderr=b"1 failed\n", exit_code=1)})
    async with open_sandbox(Settings(), runner=runner) as sandbox:
        assert await report_of_build(sandbox) == "red: 1 failed"
    assert runner.launches[0].policy.resource_limits.timeout_seconds == 30


@pytest.mark.anyio
async def test_a_build_that_hangs_is_ended_after_30_seconds(
    scripted_runner: Callable[..., ScriptedRunner], fake_clock: FakeClock
) -> None:
    runner = scripted_runner({"make test": Script(steps=[Print(b"compiling\n"), Pause(600)])})
    async with open_sandbox(Settings(), runner=runner, clock=fake_clock) as sandbox:
        build = await sandbox.submit("make test", timeout_seconds=30)
        async with aclosing(sandbox.follow(build)) as events:
            async for event in events:
                if event.data == b"compiling\n":
                    await fake_clock.advance(30)  # no waiting: half a minute passes here
        assert (await sandbox.wait(build)).status == "timeout"


class TestMyClock(ClockContract):
    """Every port has such a suite: subclass it, give it your adapter, and pytest runs the port's whole contract."""

    @pytest.fixture
    def clock(self) -> SystemClock:
        return SystemClock()

    @pytest.fixture
    def pass_time(self) -> PassTime:
        return anyio.sleep
