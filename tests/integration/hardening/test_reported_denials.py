"""What a sandbox refused comes back on the exit of a command that failed for it."""

from __future__ import annotations

import platform

import anyio
import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import DenialKind
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_32_BIT_CALL = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""


REFUSED = [
    ("touch /usr/x", "/usr/x", "filesystem.allow_write"),
    ("echo x > /etc/x", "/etc/x", "filesystem.allow_write"),
    ('python3 -c \'open("/usr/y", "w")\'', "/usr/y", "filesystem.allow_write"),
    ("unshare -Ur true", "unshare", "seccomp"),
    ("cat /dev/zero > big", "/workspace", "resource_limits.workspace_mb"),
    (
        "python3 -c 'import socket; socket.create_connection((\"a.example\", 80))'",
        "a name or address that was not reported",
        "network.allowed_domains",
    ),
]


@pytest.mark.parametrize(("script", "target", "rule"), REFUSED)
async def test_a_refusal_comes_back_with_its_rule(
    runner: BubblewrapRunner, script: str, target: str, rule: str
) -> None:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(workspace_mb=1))
    finished = await run_command(runner, Command(shell=script), policy)
    assert finished.exit.exit_code != 0
    (denial,) = finished.exit.denials
    assert (denial.target, denial.rule) == (target, rule), finished.stderr


async def test_what_was_not_read_yet_counts_and_is_not_lost(runner: BubblewrapRunner) -> None:
    lines = b"".join(b"touch: cannot touch '/usr/%d': Read-only file system\n" % number for number in range(3))
    command = Command(argv=("touch", "/usr/0", "/usr/1", "/usr/2"))
    with anyio.fail_after(60):
        async with runner.start(launch_of(command)) as process:
            exit_ = await process.wait()
            text = b""
            while data := await process.read(Stream.STDERR, 10):
                text += data
    assert [denial.target for denial in exit_.denials] == ["/usr/0", "/usr/1", "/usr/2"]
    assert text == lines


async def test_a_command_that_did_well_is_not_asked(runner: BubblewrapRunner) -> None:
    finished = await run_command(runner, Command(shell="touch /usr/x; true"))
    assert finished.exit.denials == ()
    assert b"Read-only file system" in finished.stderr


async def test_a_foreign_architecture_is_named(runner: BubblewrapRunner) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("does not apply: only this processor makes 32-bit calls from a 64-bit program")
    finished = await run_command(runner, Command(argv=("python3", "-c", _32_BIT_CALL)))
    (denial,) = finished.exit.denials
    assert (denial.kind, denial.rule) == (DenialKind.SYSCALL, "seccomp"), finished.exit
