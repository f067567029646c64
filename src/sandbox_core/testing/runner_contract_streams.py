"""Runner contract: standard input, output and error."""

from __future__ import annotations

import uuid

import anyio
import pytest

from sandbox_core.domain.command import MAX_STDIN_BYTES, Command
from sandbox_core.domain.errors import InputClosed
from sandbox_core.ports.runner import ProcessRunner, Stream
from sandbox_core.testing.runner_harness import (
    PATIENCE_SECONDS,
    finish,
    launch_of,
    processes_with,
    read_all,
    read_until,
    run_command,
)

_EVERY_BYTE = bytes(range(256))
_MIB = 1 << 20
_UNREAD_SECONDS = 0.2


@pytest.mark.anyio
class StreamContract:
    """What goes in and what comes out."""

    sees_closed_input = True
    """Whether the runner notices that a program which goes on running has closed its standard input."""

    async def test_both_outputs_are_kept_apart_and_byte_for_byte(self, runner: ProcessRunner) -> None:
        program = "import os; b = bytes(range(256)); os.write(1, b * 9); os.write(2, b[::-1] * 9)"
        finished = await run_command(runner, Command(argv=("python3", "-c", program)))
        assert finished.stdout == _EVERY_BYTE * 9
        assert finished.stderr == _EVERY_BYTE[::-1] * 9

    async def test_a_line_of_a_mebibyte_without_a_newline_arrives_whole(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(shell=f"head -c {_MIB} /dev/zero | tr '\\0' x"))
        assert finished.stdout == b"x" * _MIB

    async def test_a_program_waits_while_its_output_is_not_read(self, runner: ProcessRunner) -> None:
        size = 8 * _MIB
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell=f"head -c {size} /dev/zero"))) as process:
                with anyio.move_on_after(_UNREAD_SECONDS) as scope:
                    await process.wait()
                assert scope.cancelled_caught, "it printed 8 MiB into a pipe that nobody read"
                finished = await finish(process)
        assert len(finished.stdout) == size
        assert finished.exit.exit_code == 0

    async def test_a_read_never_returns_more_than_asked(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell="printf 123456789; printf abc >&2"))) as process:
                pieces = []
                while data := await process.read(Stream.STDOUT, 4):
                    pieces.append(data)
                assert b"".join(pieces) == b"123456789"
                assert all(0 < len(piece) <= 4 for piece in pieces)
                assert await process.read(Stream.STDOUT, 4) == b""
                assert await read_all(process, Stream.STDERR) == b"abc"

    async def test_without_input_the_program_reads_end_of_file(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(argv=("cat",)))
        assert (finished.exit.exit_code, finished.stdout) == (0, b"")

    async def test_given_input_reaches_the_program_byte_for_byte(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(argv=("cat",), stdin=_EVERY_BYTE))
        assert finished.stdout == _EVERY_BYTE

    async def test_input_far_over_a_pipe_reaches_the_program(self, runner: ProcessRunner) -> None:
        text = b"y" * MAX_STDIN_BYTES
        finished = await run_command(runner, Command(argv=("cat",), stdin=text))
        assert finished.stdout == text

    async def test_interactive_input_is_answered_while_it_runs(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(argv=("cat",), interactive=True))) as process:
                for word in (b"one\n", b"two\n"):
                    await process.send_stdin(word)
                    assert await read_until(process, Stream.STDOUT, b"\n") == word
                await process.close_stdin()
                await process.close_stdin()
                assert (await finish(process)).exit.exit_code == 0
                with pytest.raises(InputClosed):
                    await process.send_stdin(b"late\n")

    async def test_input_to_a_program_that_closed_it_is_refused(self, runner: ProcessRunner) -> None:
        if not self.sees_closed_input:
            pytest.skip("does not apply: this runner cannot see it")
        command = Command(shell="exec 0<&-; echo closed; sleep 1000", interactive=True)
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(command)) as process:
                await read_until(process, Stream.STDOUT, b"closed")
                with pytest.raises(InputClosed):
                    await process.send_stdin(b"anybody there?\n")

    async def test_input_to_an_ended_program_is_refused(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(argv=("true",), interactive=True))) as process:
                await finish(process)
                with pytest.raises(InputClosed):
                    await process.send_stdin(b"late\n")

    async def test_a_program_that_never_reads_holds_up_only_its_sender(self, runner: ProcessRunner) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell="sleep 1000", interactive=True))) as process:
                with anyio.move_on_after(_UNREAD_SECONDS) as scope:
                    await process.send_stdin(b"z" * (4 * _MIB))
                assert scope.cancelled_caught
                await process.kill()
                await finish(process)

    async def test_a_daemon_that_holds_the_output_ends_with_its_command(self, runner: ProcessRunner) -> None:
        seconds = f"1000.{uuid.uuid4().int}"
        script = f"(setsid sleep {seconds} &) ; sleep {seconds} & echo started"
        finished = await run_command(runner, Command(shell=script))
        assert finished.stdout == b"started\n"
        assert processes_with(seconds) == []

    async def test_outputs_can_be_opened_by_name(self, runner: ProcessRunner) -> None:
        finished = await run_command(runner, Command(shell="echo out > /dev/stdout; echo err > /dev/stderr"))
        assert (finished.stdout, finished.stderr) == (b"out\n", b"err\n")
