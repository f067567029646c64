"""Runner contract: how commands end, and what becomes of those that cannot run."""

from __future__ import annotations

import signal

import anyio
import pytest

from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.testing.runner_harness import PATIENCE_SECONDS, finish, launch_of, run_command


@pytest.mark.anyio
class ExitContract:
    """Exit codes, signals, commands that never run, limits."""

    @pytest.mark.parametrize("code", [0, 3, 126, 127, 255])
    async def test_an_exit_code_comes_through(self, runner: ProcessRunner, code: int) -> None:
        finished = await run_command(runner, Command(shell=f"exit {code}"))
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, code)
        assert finished.exit.signal is None

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
    async def test_a_signal_is_told_by_number_and_shell_code(self, runner: ProcessRunner, number: int) -> None:
        finished = await run_command(runner, Command(shell=f"kill -{int(number)} $$"))
        assert finished.exit.reason is TerminationReason.SIGNALED
        assert (finished.exit.signal, finished.exit.exit_code) == (number, 128 + number)

    async def test_a_program_that_does_not_exist_exits_127_and_is_named(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(argv=("no-such-program", "argument")))
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, 127)
        assert finished.stderr.count(b"\n") == 1
        assert b"no-such-program" in finished.stderr

    async def test_a_file_that_cannot_be_executed_exits_126_and_is_named(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(argv=("/etc/passwd",)))
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, 126)
        assert finished.stderr.count(b"\n") == 1
        assert b"/etc/passwd" in finished.stderr

    async def test_the_shell_reports_unknown_programs_itself(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(shell="no-such-program"))
        assert finished.exit.exit_code == 127
        assert b"no-such-program" in finished.stderr

    async def test_a_missing_working_directory_is_a_failed_setup(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(argv=("true",), working_directory="no-such-directory"))
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.SETUP_FAILED, None)
        assert "no-such-directory" in (finished.exit.message or "")
        assert (finished.stdout, finished.stderr) == (b"", b"")

    async def test_words_of_the_runners_own_tools_are_not_taken_for_a_failure(self, runner: ProcessRunner) -> None:
        text = "bwrap: execvp no-such-program: No such file or directory"
        finished = await run_command(runner, Command(shell=f"echo {text!r} >&2; exit 1"))
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, 1)
        assert finished.stderr.decode() == text + "\n"

    async def test_waiting_again_returns_the_same(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell="exit 3"))) as process:
                await finish(process)
                first = await process.wait()
                assert await process.wait() == first

    async def test_orders_to_an_ended_process_are_no_error(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(argv=("true",)))) as process:
                await finish(process)
                await process.terminate()
                await process.kill()
                await process.close_stdin()
                assert (await process.wait()).exit_code == 0

    async def test_cpu_time_and_memory_used_are_measured(self, runner: ProcessRunner) -> None:
        program = "import time\nd = b'x' * (32 << 20)\nwhile time.process_time() < 0.2: pass"
        finished = await run_command(runner, Command(argv=("python3", "-c", program)))
        used = finished.exit
        assert used.exit_code == 0
        assert (used.user_cpu_seconds or 0) + (used.system_cpu_seconds or 0) >= 0.19
        assert (used.max_rss_bytes or 0) > 32 << 20

    async def test_a_process_over_its_cpu_time_ends_for_that_reason(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy(resource_limits=ResourceLimits(max_cpu_seconds=1))
        finished = await run_command(runner, Command(shell="while :; do :; done"), policy)
        assert finished.exit.reason is TerminationReason.CPU_TIME
        assert [hit.name for hit in finished.exit.limits_hit] == ["max_cpu_seconds"]

    async def test_a_file_over_its_size_ends_the_writer(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy(resource_limits=ResourceLimits(max_file_size_mb=1))
        finished = await run_command(
            runner, Command(argv=("dd", "if=/dev/zero", "of=big", "bs=65536", "count=32")), policy
        )
        assert (finished.exit.signal, finished.exit.exit_code) == (signal.SIGXFSZ, 128 + signal.SIGXFSZ)
        assert [hit.name for hit in finished.exit.limits_hit] == ["max_file_size_mb"]

    async def test_memory_over_its_limit_is_refused_to_the_program(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy(resource_limits=ResourceLimits(max_memory_mb=64))
        program = "try:\n bytearray(256 << 20)\nexcept MemoryError:\n print('refused')"
        finished = await run_command(runner, Command(argv=("python3", "-c", program)), policy)
        assert finished.stdout == b"refused\n"

    async def test_open_files_over_the_limit_are_refused_to_the_program(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy(resource_limits=ResourceLimits(max_open_files=32))
        program = "import os\ntry:\n while True: os.dup(0)\nexcept OSError:\n print('refused', os.dup2(0, 31))"
        finished = await run_command(runner, Command(argv=("python3", "-c", program)), policy)
        assert finished.stdout == b"refused 31\n"
