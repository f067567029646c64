"""LocalRunner's processes and directories do not outlive the server."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.runners.local import LocalRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import (
    ExecutionPolicy,
    FilesystemPolicy,
    IsolationPolicy,
    NetworkPolicy,
    ResourceLimits,
)
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of, processes_with, read_until, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_SERVER = """
import anyio, sys
from sandbox_adapters.runners.local import LocalRunner
from sandbox_core.domain.command import Command
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of

async def main():
    async with LocalRunner(workspace_base=sys.argv[1]) as runner:
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


@pytest.mark.skipif(sys.platform != "linux", reason="does not apply: daemons are ended on Linux only")
async def test_a_killed_server_leaves_no_process_and_no_directory(
    anyio_backend: str, tmp_path: Path, token: str
) -> None:
    async with await anyio.open_process([sys.executable, "-c", _SERVER, str(tmp_path), token], stderr=None) as server:
        assert server.stdout is not None
        with anyio.fail_after(60):
            assert (await server.stdout.receive()).startswith(b"up")
        assert processes_with(token)
        server.send_signal(signal.SIGKILL)
        await server.wait()
    with anyio.fail_after(60):
        # The kernel tells nobody but a parent; the wait is bounded.
        while processes_with(token) or os.listdir(tmp_path):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_hostile_directories_are_removed(anyio_backend: str, tmp_path: Path) -> None:
    script = "mkdir -p a/b; ln -s /usr a/usr; touch a/b/c; chmod 0 a/b; chmod 0 a"
    async with LocalRunner(workspace_base=str(tmp_path)) as runner:
        await run_command(runner, Command(shell=script))
        assert os.listdir(tmp_path) == []


async def test_a_killed_stub_is_a_lost_run(anyio_backend: str, tmp_path: Path) -> None:
    command = Command(shell="echo $PPID; exec cat", interactive=True)
    async with LocalRunner(workspace_base=str(tmp_path)) as runner, runner.start(launch_of(command)) as process:
        stub = int(await read_until(process, Stream.STDOUT, b"\n"))
        os.kill(stub, signal.SIGKILL)
        with anyio.fail_after(60):
            assert (await process.wait()).reason is TerminationReason.LOST
    assert os.listdir(tmp_path) == []


async def test_every_rule_that_needs_isolation_is_refused(anyio_backend: str) -> None:
    policy = ExecutionPolicy(
        network=NetworkPolicy(denied_domains=("example.com",)),
        filesystem=FilesystemPolicy(
            allow_read=("/opt",), deny_read=("/root",), allow_write=(".",), deny_write=("/usr",)
        ),
        resource_limits=ResourceLimits(workspace_mb=1, max_processes=1, max_cpu_seconds=1),
        isolation=IsolationPolicy(require=("seccomp",)),
    )
    fields = [violation.field for violation in LocalRunner().unenforceable(policy)]
    assert fields == [
        "network.denied_domains", "filesystem.allow_read", "filesystem.deny_read", "filesystem.allow_write",
        "filesystem.deny_write", "resource_limits.workspace_mb", "resource_limits.max_processes", "isolation.require",
    ]  # fmt: skip
