"""Runner contract: what a command starts with, how it is ended, and what is left afterwards."""

from __future__ import annotations

import json
import uuid

import anyio
import pytest

from sandbox_core.domain.command import MAX_ARGUMENTS, MAX_COMMAND_BYTES, MAX_VARIABLES, Command
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, IsolationPolicy
from sandbox_core.ports.runner import Process, ProcessRunner, Stream
from sandbox_core.testing.runner_harness import (
    PATIENCE_SECONDS,
    finish,
    launch_of,
    open_descriptors,
    processes_with,
    read_until,
    run_command,
)

_ENVIRONMENT = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "TMPDIR", "PWD"}
"""What a command may find in its environment beside its own."""
_SHOW_ARGV = "import json, sys; print(json.dumps(sys.argv[1:]))"
_RUNS = 50


@pytest.mark.anyio
class LifeContract:
    """Start, surroundings, end."""

    isolates: bool
    """Whether the runner isolates; the suite checks that it says so truly."""

    descriptors_kept = 0
    """How many descriptors the runner may hold between runs for what it prepares ahead."""

    @pytest.fixture
    def token(self) -> str:
        """A number of seconds that no other process sleeps."""
        return f"1000.{uuid.uuid4().int}"

    async def test_arguments_arrive_as_they_were_given(self, runner: ProcessRunner) -> None:
        given = ["", "two words", "-dash", "--", "$HOME;'\"`", "ünïcödé ☃", "new\nline", "x" * 100_000]
        finished = await run_command(runner, Command(argv=("python3", "-c", _SHOW_ARGV, *given)))
        assert json.loads(finished.stdout) == given

    async def test_the_longest_shell_text_runs(self, runner: ProcessRunner) -> None:
        text = "echo ok #"
        finished = await run_command(runner, Command(shell=text.ljust(MAX_COMMAND_BYTES, "x")))
        assert (finished.stdout, finished.exit.exit_code) == (b"ok\n", 0)

    async def test_the_most_arguments_and_variables_arrive(self, runner: ProcessRunner) -> None:
        count = "import os, sys; print(len(sys.argv), sum(name[:3] == 'OWN' for name in os.environ))"
        program = ("python3", "-c", count)
        own = {f"OWN{number}": "x" for number in range(MAX_VARIABLES)}
        argv = (*program, *("x" for _ in range(MAX_ARGUMENTS - len(program))))
        finished = await run_command(runner, Command(argv=argv, environment=own))
        assert finished.stdout.split() == [b"%d" % (MAX_ARGUMENTS - 2), b"%d" % MAX_VARIABLES], finished.stderr

    async def test_a_command_may_start_with_a_dash(self, runner: ProcessRunner) -> None:
        assert (await run_command(runner, Command(shell="-no-option"))).exit.exit_code == 127
        assert (await run_command(runner, Command(argv=("-no-option",)))).exit.exit_code == 127

    async def test_the_environment_is_the_allow_list_and_the_commands_own(
        self, runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SERVER_SECRET", "do not tell")
        own = {"OWN": "välue = 1", "LANG": "C"}
        finished = await run_command(runner, Command(argv=("env", "-0"), environment=own))
        seen = dict(item.split("=", 1) for item in finished.stdout.decode().split("\0") if item)
        assert set(seen) - {"OWN"} <= _ENVIRONMENT
        assert {"PATH", "HOME", "LANG", "OWN"} <= set(seen)
        assert (seen["OWN"], seen["LANG"]) == (own["OWN"], own["LANG"])

    async def test_each_start_has_an_empty_writable_directory_of_its_own(self, runner: ProcessRunner) -> None:
        for _ in range(2):
            finished = await run_command(runner, Command(shell="ls -A && touch file && mkdir folder && ls -A"))
            assert finished.stdout == b"file\nfolder\n"

    async def test_a_working_directory_is_relative_to_the_workspace(self, runner: ProcessRunner) -> None:
        for path in (".", "./"):
            finished = await run_command(runner, Command(shell='test "$PWD" -ef "$HOME"', working_directory=path))
            assert finished.exit.exit_code == 0
        finished = await run_command(runner, Command(argv=("pwd",), working_directory="/usr"))
        assert finished.stdout == b"/usr\n"

    async def test_terminate_asks_and_the_program_may_clean_up(self, runner: ProcessRunner) -> None:
        command = Command(shell="trap 'echo cleaned; exit 5' TERM; echo up; while :; do sleep 0.01; done")
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(command)) as process:
                await read_until(process, Stream.STDOUT, b"up")
                await process.terminate()
                finished = await finish(process)
        assert (finished.exit.reason, finished.exit.exit_code) == (TerminationReason.EXITED, 5)
        assert b"cleaned" in finished.stdout

    async def test_terminate_at_once_after_the_start_ends_it(self, runner: ProcessRunner, token: str) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(argv=("sleep", token)))) as process:
                await process.terminate()
                finished = await finish(process)
        assert finished.exit.reason is TerminationReason.SIGNALED
        assert processes_with(token) == []

    async def test_kill_ends_a_tree_that_ignores_terminate(self, runner: ProcessRunner, token: str) -> None:
        script = f"trap '' TERM; (setsid sleep {token} &); echo up; while :; do sleep 0.01; done"
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell=script))) as process:
                await read_until(process, Stream.STDOUT, b"up")
                await process.terminate()
                with anyio.move_on_after(0.2) as scope:
                    await process.wait()
                assert scope.cancelled_caught, "it ended although it ignores SIGTERM"
                await process.kill()
                finished = await finish(process)
                assert processes_with(token) == []
        assert (finished.exit.reason, finished.exit.signal) == (TerminationReason.SIGNALED, 9)

    async def test_leaving_the_context_ends_the_tree(self, runner: ProcessRunner, token: str) -> None:
        script = f"trap '' TERM; (setsid sleep {token} &); echo up; sleep {token}"
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell=script))) as process:
                await read_until(process, Stream.STDOUT, b"up")
            assert processes_with(token) == []
            assert (await process.wait()).reason is TerminationReason.SIGNALED

    async def test_an_error_inside_the_context_comes_out_as_it_is(self, runner: ProcessRunner, token: str) -> None:
        with pytest.raises(LookupError, match="mine"):
            async with runner.start(launch_of(Command(argv=("sleep", token)))):
                raise LookupError("mine")
        assert processes_with(token) == []

    async def test_cancellation_at_any_moment_of_the_start_leaves_nothing(
        self, runner: ProcessRunner, token: str
    ) -> None:
        async def run() -> None:
            async with runner.start(launch_of(Command(argv=("sleep", token)))) as process:
                await process.wait()

        with anyio.fail_after(PATIENCE_SECONDS):
            for milliseconds in range(10):
                with anyio.move_on_after(milliseconds / 1000):
                    await run()
        assert processes_with(token) == []

    async def test_cancellation_of_a_read_leaves_nothing(self, runner: ProcessRunner, token: str) -> None:
        started = anyio.Event()

        async def run() -> None:
            async with runner.start(launch_of(Command(shell=f"echo up; sleep {token}"))) as process:
                await read_until(process, Stream.STDOUT, b"up")
                started.set()
                await process.read(Stream.STDOUT, 1)

        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await started.wait()
                tasks.cancel_scope.cancel()
        assert processes_with(token) == []

    async def test_many_runs_leave_no_descriptors(self, runner: ProcessRunner) -> None:
        await run_command(runner, Command(argv=("true",)))
        before = open_descriptors()
        for number in range(_RUNS):
            interactive = number % 2 == 0
            await run_command(runner, Command(argv=("true",), interactive=interactive))
        assert open_descriptors() - before <= self.descriptors_kept

    async def test_runs_at_the_same_time_do_not_mix(self, runner: ProcessRunner) -> None:
        output: dict[int, bytes] = {}

        async def run(number: int) -> None:
            script = f"for i in 1 2 3 4 5; do echo {number}; done; exit {number}"
            finished = await run_command(runner, Command(shell=script))
            assert finished.exit.exit_code == number
            output[number] = finished.stdout

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(run, number)
        assert output == {number: b"%d\n" % number * 5 for number in range(10)}

    async def test_what_cannot_be_enforced_is_refused_before_launch(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy(isolation=IsolationPolicy(require=("no-such-layer",)))
        (violation,) = runner.unenforceable(policy)
        assert (violation.field, violation.asked) == ("isolation.require", "no-such-layer")
        with pytest.raises(PolicyRefused):
            async with runner.start(launch_of(Command(argv=("true",)), policy)):
                pytest.fail("it started")
        assert list(runner.unenforceable(ExecutionPolicy())) == []

    async def test_any_layer_of_the_record_can_be_required(self, runner: ProcessRunner) -> None:
        policy = ExecutionPolicy()
        for _ in range(2):
            process: Process
            with anyio.fail_after(PATIENCE_SECONDS):
                async with runner.start(launch_of(Command(argv=("true",)), policy)) as process:
                    layers = process.isolation.layers
                    ended = await process.wait()
            assert (ended.exit_code, ended.denials, ended.denials_omitted) == (0, (), 0)
            assert (ended.network_sent_bytes, ended.network_received_bytes) == (None, None)
            assert set(policy.isolation.require) <= set(layers)
            policy = ExecutionPolicy(isolation=IsolationPolicy(require=layers))

    async def test_the_isolation_record_says_what_is_true(self, runner: ProcessRunner) -> None:
        script = "cat /proc/net/dev; echo; ls /proc | grep -c '^[0-9]'"
        process: Process
        with anyio.fail_after(PATIENCE_SECONDS):
            async with runner.start(launch_of(Command(shell=script))) as process:
                record = process.isolation
                finished = await finish(process)
        interfaces = [line.split(b":")[0].strip() for line in finished.stdout.splitlines() if b":" in line]
        assert record.runner == runner.name
        assert record.isolated is self.isolates
        assert record.network == ("none" if self.isolates else "host")
        if self.isolates:
            assert interfaces == [b"lo"]
            assert int(finished.stdout.split()[-1]) < 10
            assert {"pid", "net", "mount", "user"} <= set(record.layers)
        else:
            assert record.layers == ()
