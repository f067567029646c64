"""`sandbox run`: one command, here or on a server, its streams joined to ours and its exit code passed on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from sandbox_adapters import event_loop
from sandbox_adapters.limits import Limits
from sandbox_adapters.logging import configure_logging
from sandbox_adapters.policy_input import LIMITS, normalise_policy
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_adapters.submission import make_submission
from sandbox_core.application.service import Submission
from sandbox_core.domain.errors import ExecutionFinished, InputClosed, InputFull, InvalidArgument, SandboxError
from sandbox_core.domain.events import OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import LARGEST_LIMIT, ExecutionPolicy
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp.cli_output import Output, OutputFailed, ReaderGone
from sandbox_mcp.cli_signals import Interruptions, interruptions

EXIT_TIMEOUT = 124
EXIT_NOT_RUN = 125
EXIT_LOST = 123
EXIT_READER_GONE = 128 + signal.SIGPIPE

_UNANSWERED = "Interrupted; the server did not answer, so the command may run there until its timeout."
_NOTICE_SECONDS = 1.0
_STDIN = 0
_INPUT_BYTES = 64 * 1024
_INPUT_RETRY_SECONDS = 0.01


class Runs(Protocol):
    """Where the command runs. Errors are those of ExecutionService, or other SandboxErrors."""

    async def submit(self, submission: Submission) -> Execution:
        """Start it, with all the output that may be had."""
        ...

    async def get(self, execution_id: ExecutionId) -> Execution:
        """Return it as it is now."""
        ...

    def follow(self, execution_id: ExecutionId) -> AsyncGenerator[OutputEvent, None]:
        """Yield every event as it comes, to the terminal one."""
        ...

    async def cancel(self, execution_id: ExecutionId, *, force: bool) -> object:
        """Ask it to end."""
        ...

    async def send_stdin(self, execution_id: ExecutionId, data: bytes, *, end: bool) -> None:
        """Send input."""
        ...


def run_command(
    *,
    argv: Sequence[str],
    shell: str | None,
    policy: ExecutionPolicy,
    environment: Sequence[str],
    working_directory: str | None,
    labels: Sequence[str],
    runner: str | None,
    pass_stdin: bool,
    json_lines: bool,
    verbose: bool,
    retry_safe: bool,
    idempotency_key: str | None,
    server: str | None,
) -> int:
    """Run one command, here or on a server, and return the exit code of `sandbox run`.

    Raises InvalidArgument for wrong arguments, PolicyRefused, and what opening a sandbox raises.
    """
    if shell is not None and argv:
        raise InvalidArgument("command", "is given twice, as -c TEXT and after --; give it once")
    if shell is None and not argv:
        raise InvalidArgument("command", "is missing; write `sandbox run -- CMD` or `sandbox run -c TEXT`")
    if retry_safe and pass_stdin:
        raise InvalidArgument("--retry-safe", "needs --no-stdin: what was passed on to a run that was lost is gone")
    if server is not None and runner is not None:
        raise InvalidArgument("--runner", "is the server's choice; leave it out with --server")
    # One process and one run: a server's Redis has no part in it.
    chosen: dict[str, Any] = {"redis_url": None, "queue_url": None, "local_runner": True}
    if runner is not None:
        chosen["runner"] = runner
    settings = Settings(**chosen)
    configure_logging(level="WARNING")
    submission = make_submission(
        list(argv) if shell is None else shell,
        working_directory=working_directory,
        environment=_variables(environment),
        interactive=pass_stdin,
        policy=policy,
        retry_safe=retry_safe,
        idempotency_key=idempotency_key,
        labels=labels,
    )
    runs = _here(settings) if server is None else _there(settings, server)
    output = Output(json_lines=json_lines, verbose=verbose)
    return event_loop.run(_run, runs, submission, output, None if server is None else _UNANSWERED)


async def _run(
    opened: AbstractAsyncContextManager[Runs], submission: Submission, output: Output, unanswered: str | None = None
) -> int:
    """Run it; `unanswered` is said when a signal ends us although the end of the command is not known."""
    with interruptions() as signals:
        with signals.whole:
            async with opened as runs:
                return await _run_there(runs, submission, output, signals)
        if unanswered is not None and signals.is_submitting:
            with anyio.move_on_after(_NOTICE_SECONDS), suppress(ReaderGone, OutputFailed):
                await output.notice(unanswered)
        return 128 + signals.numbers[0]


async def _run_there(runs: Runs, submission: Submission, output: Output, signals: Interruptions) -> int:
    signals.submitting()
    execution = await runs.submit(submission)
    signals.submitted()
    job = _Job(runs, execution.id, output, signals)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(job.obey)
        if submission.command.interactive:
            tasks.start_soon(job.forward_input)
        await job.show()
        tasks.cancel_scope.cancel()
    if job.failure is not None:
        raise job.failure
    ended = await runs.get(execution.id)
    # What could not be sent to a worker that is gone is no news beside that.
    if job.input_failure is not None and not _is_lost(ended):
        with suppress(ReaderGone, OutputFailed):
            await output.notice("Input could not be passed on to the command, so it was ended.")
        raise job.input_failure
    return job.exit_code(ended)


class _Job:
    """One execution and what joins it to our terminal."""

    def __init__(self, runs: Runs, execution_id: ExecutionId, output: Output, signals: Interruptions) -> None:
        self._runs = runs
        self._id = execution_id
        self._output = output
        self._signals = signals
        self._showing = anyio.CancelScope()
        self._reader_gone = False
        self.failure: SandboxError | None = None
        self.input_failure: SandboxError | None = None

    async def show(self) -> None:
        """Write events as they come, to the end."""
        try:
            with self._showing:
                async with aclosing(self._runs.follow(self._id)) as events:
                    async for event in events:
                        if event.kind.is_terminal:
                            # Stored together with the outcome, so it is there.
                            ended = await self._runs.get(self._id)
                            await self._output.show_end(event, ended)
                        else:
                            await self._output.show(event)
        except ReaderGone:
            self._reader_gone = True
            await self._runs.cancel(self._id, force=True)
        except OutputFailed as error:
            self.failure = error
            await self._runs.cancel(self._id, force=True)
        except SandboxError as error:
            self.failure = error

    async def obey(self) -> None:
        """End the command gracefully on the first signal; kill it, and stop writing, on the next."""
        again = False
        async with anyio.create_task_group() as tasks, aclosing(self._signals.each()) as signals:
            async for _ in signals:
                tasks.start_soon(self._cancel, again)
                again = True

    async def _cancel(self, again: bool) -> None:
        try:
            await self._runs.cancel(self._id, force=again)
        except SandboxError as error:
            self.failure = error
        if again:
            self._showing.cancel()

    async def forward_input(self) -> None:
        """Pass on what we are given, to its end or until the command takes no more; end a command that lost some."""
        try:
            while data := await _read_input():
                await self._send(data, end=False)
            await self._send(b"", end=True)
        except (InputClosed, ExecutionFinished):
            return
        except SandboxError as error:
            self.input_failure = error
            # It would wait for the rest until its timeout.
            with suppress(SandboxError):
                await self._runs.cancel(self._id, force=False)

    async def _send(self, data: bytes, *, end: bool) -> None:
        while True:
            try:
                await self._runs.send_stdin(self._id, data, end=end)
            except InputFull:
                # The command has not read what it has; the buffer tells nobody when it has room again.
                await anyio.sleep(_INPUT_RETRY_SECONDS)
            else:
                return

    def exit_code(self, execution: Execution) -> int:
        """Return what `sandbox run` exits with."""
        if self._reader_gone:
            return EXIT_READER_GONE
        if self._signals.numbers and execution.status in (ExecutionStatus.CANCELLED, ExecutionStatus.RUNNING):
            return 128 + self._signals.numbers[0]
        code = None if execution.outcome is None else execution.outcome.exit_code
        match execution.status:
            case ExecutionStatus.COMPLETED if code is not None:
                return code
            case ExecutionStatus.TIMEOUT:
                return EXIT_TIMEOUT
            case ExecutionStatus.FAILED if _is_lost(execution):
                return EXIT_LOST
            case _:
                return EXIT_NOT_RUN


def _is_lost(execution: Execution) -> bool:
    return execution.outcome is not None and execution.outcome.reason is TerminationReason.LOST


async def _read_input() -> bytes:
    """Return the next piece of our standard input; b"" at its end, and when it cannot be read."""
    try:
        await anyio.wait_readable(_STDIN)
    except PermissionError:  # epoll_ctl(2): a file, which is always ready
        await anyio.lowlevel.checkpoint()
    try:
        return os.read(_STDIN, _INPUT_BYTES)
    except BlockingIOError:
        return await _read_input()
    except OSError:
        return b""


class _Here:
    """Satisfies `Runs` with a sandbox in this process."""

    def __init__(self, sandbox: Sandbox, settings: Settings) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self.follow = sandbox.follow
        self.cancel = sandbox.cancel
        self.send_stdin = sandbox.send_stdin

    async def submit(self, submission: Submission) -> Execution:
        wanted = _with_whole_output(submission, self._settings, self._sandbox.limits)
        return await self._sandbox.service.submit(self._sandbox.principal, wanted)

    async def get(self, execution_id: ExecutionId) -> Execution:
        return await self._sandbox.service.get(self._sandbox.principal, execution_id)


@asynccontextmanager
async def _here(settings: Settings) -> AsyncIterator[Runs]:
    async with open_sandbox(settings) as sandbox:
        yield _Here(sandbox, settings)


@asynccontextmanager
async def _there(settings: Settings, url: str) -> AsyncIterator[Runs]:
    # Imported here: a run in this process does not wait for the libraries of a client.
    from sandbox_mcp.server_runs import open_server

    token = None if settings.auth_token is None else settings.auth_token.get_secret_value()
    async with open_server(url, token) as runs:
        yield runs


def _with_whole_output(submission: Submission, settings: Settings, limits: Limits) -> Submission:
    """Ask for all the output that may be had: it is passed on at once, not kept for somebody to read."""
    asked = submission.policy.resource_limits
    if asked.max_output_bytes is not None or "max_output_bytes" in normalise_policy(settings.defaults)[LIMITS]:
        return submission
    most = limits.ceiling.resource_limits.max_output_bytes or LARGEST_LIMIT
    policy = replace(submission.policy, resource_limits=replace(asked, max_output_bytes=most))
    return replace(submission, policy=policy)


def _variables(given: Sequence[str]) -> dict[str, str]:
    variables = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            if name not in os.environ:
                raise InvalidArgument("--env", f"{name[:64]!r} has no value and is not set here; write NAME=VALUE")
            value = os.environ[name]
        variables[name] = value
    return variables
