"""Test your own application without starting a process: a scripted runner, time that you move, and a contract suite."""

import anyio
import pytest

from sandbox_adapters import Sandbox, Settings, open_sandbox
from sandbox_core.testing.scripted_runner import Script, ScriptedRunner


async def build_and_report(sandbox: Sandbox) -> str:
    """The application under test: it runs a build and says what came of it."""
    result = await sandbox.run("make test", timeout_seconds=30)
    return "green" if result.ok else f"red: {result.error_text.strip()}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "report"),
    [
        (Script(stdout=b"12 passed\n"), "green"),
        (Script(stderr=b"1 failed\n", exit_code=1), "red: 1 failed"),
    ],
)
async def test_build_is_reported(script: Script, report: str) -> None:
    runner = ScriptedRunner({"make test": script})
    async with open_sandbox(Settings(), runner=runner) as sandbox:
        with anyio.fail_after(10):
            assert await build_and_report(sandbox) == report
    assert runner.launches[0].policy.resource_limits.timeout_seconds == 30
