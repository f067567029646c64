"""open_sandbox and Sandbox: a whole sandbox inside one Python program."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from copy import copy
from importlib.metadata import version
from typing import TYPE_CHECKING

import anyio

from sandbox_adapters.availability import Availability
from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.container import ISOLATING_RUNNERS, SandboxContainer
from sandbox_adapters.freed_places import PlacesElsewhere, ask_again
from sandbox_adapters.heartbeat import Heartbeat, OwnBack
from sandbox_adapters.limits import Limits
from sandbox_adapters.logging import get_logger
from sandbox_adapters.own_loop import OwnLoop
from sandbox_adapters.redis_options import check_loop, check_redis
from sandbox_adapters.results import Health, RunResult, result_of
from sandbox_adapters.settings import Settings, unknown_variables
from sandbox_adapters.submission import PolicyInput, check_statuses, input_bytes, make_submission, whole_bytes
from sandbox_core.application.remote import Back
from sandbox_core.application.service import ExecutionService, Submission
from sandbox_core.domain.errors import ExecutionNotFound, InfrastructureError
from sandbox_core.domain.events import OutputEvent
from sandbox_core.domain.ids import (
    LOCAL_PRINCIPAL,
    ExecutionId,
    Principal,
    parse_execution_id,
    parse_list_position,
    parse_session_id,
)
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import ExecutionQueue
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.ports.store import ExecutionPage, StateStore

if TYPE_CHECKING:
    from sandbox_adapters.message_log import MessageLog
    from sandbox_adapters.metrics.exposition import Metrics

DEFAULT_RESULT_BYTES = 16 * 1024 * 1024
"""Output that `run` and `wait` bring at most, bytes; over the default cap of the policy, so all of it by default."""

ABANDONED_RUN_SECONDS = 10.0
"""How long a cancelled `run` waits for its killed process to be gone."""

_log = get_logger("sandbox_adapters.sandbox")


class Sandbox:
    """Runs commands for one principal. Made by `open_sandbox`; every method raises ExecutionNotFound for foreign ids.

    It belongs to the event loop that it was opened in: in another one its methods raise RuntimeError.

    `service` and `supervisor` are the application underneath, for what this facade leaves out; `limits` holds the
    ceiling and the default limits in force, `capabilities` says what is enforced and what may be asked for, `back` what
    other processes are told of this one. `messages` keeps streams of MCP servers where other processes find them; None
    with state in memory. `metrics` tells the counts of this process; None unless SANDBOX_METRICS is on.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        service: ExecutionService,
        supervisor: Back,
        store: StateStore,
        queue: ExecutionQueue,
        runner: ProcessRunner,
        limits: Limits,
        capabilities: Capabilities,
        back: OwnBack,
        messages: MessageLog | None = None,
        metrics: Metrics | None = None,
        principal: Principal = LOCAL_PRINCIPAL,
    ) -> None:
        self.settings = settings
        self.limits = limits
        self.capabilities = capabilities
        self.back = back
        self.service = service
        self.supervisor = supervisor
        self.runner = runner
        self.messages = messages
        self.metrics = metrics
        self.principal = principal
        self._availability = Availability(store, queue)
        self._loop = OwnLoop("This sandbox")

    def for_principal(self, principal: Principal) -> Sandbox:
        """Return the same sandbox as another caller sees it: own executions, own quota."""
        theirs = copy(self)
        theirs.principal = principal
        return theirs

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_seconds: float | None = None,
        working_directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        policy: PolicyInput = None,
        session_id: str | None = None,
        retry_safe: bool = False,
        labels: Collection[str] = (),
        max_bytes: int = DEFAULT_RESULT_BYTES,
    ) -> RunResult:
        """Run a command to its end and return how it ended. Cancelling the call kills the command.

        Args:
            command: text for the shell, or a list of a program and its arguments.
            timeout_seconds: wall time, seconds; 60 by default and at most 300, unless the settings say otherwise.
            policy: limits and grants, an ExecutionPolicy or a mapping in the shape of `sandbox_config`.
            retry_safe: running it twice does no harm: when the worker that runs it dies it is run again, three times at
                most, instead of ending as `lost`.
            labels: what whoever runs it must offer; without workers elsewhere that is SANDBOX_LABELS.
            max_bytes: output in the result at most, bytes, head and tail.

        Raises InvalidArgument, PolicyRefused, Unservable, ServerFull.
        """
        submission = make_submission(
            command,
            timeout_seconds=timeout_seconds,
            working_directory=working_directory,
            environment=environment,
            stdin=stdin,
            policy=policy,
            session_id=session_id,
            retry_safe=retry_safe,
            labels=labels,
        )
        whole_bytes("max_bytes", max_bytes)
        execution_id = await self._submit(submission)
        try:
            return await self.wait(execution_id, max_bytes=max_bytes)
        except BaseException:
            await self._abandon(execution_id)
            raise

    async def stream(
        self,
        command: str | Sequence[str],
        *,
        timeout_seconds: float | None = None,
        working_directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        policy: PolicyInput = None,
        session_id: str | None = None,
        labels: Collection[str] = (),
    ) -> AsyncGenerator[OutputEvent, None]:
        """Run a command and yield its events as they come; the last one says how it ended.

        Leaving the loop early kills the command once the iterator is closed: use `contextlib.aclosing`.
        Arguments and errors as `run` has them.
        """
        submission = make_submission(
            command,
            timeout_seconds=timeout_seconds,
            working_directory=working_directory,
            environment=environment,
            stdin=stdin,
            policy=policy,
            session_id=session_id,
            labels=labels,
        )
        execution_id = await self._submit(submission)
        ended = False
        try:
            async with aclosing(self.service.follow(self.principal, execution_id)) as events:
                async for event in events:
                    ended = event.kind.is_terminal
                    yield event
        finally:
            if not ended:
                await self._abandon(execution_id)

    async def submit(
        self,
        command: str | Sequence[str],
        *,
        timeout_seconds: float | None = None,
        working_directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        interactive: bool = False,
        policy: PolicyInput = None,
        session_id: str | None = None,
        idempotency_key: str | None = None,
        retry_safe: bool = False,
        labels: Collection[str] = (),
    ) -> ExecutionId:
        """Start a command and return its id at once. It lives on until it ends, is cancelled, or the sandbox closes.

        Args:
            interactive: keep standard input open for `send_stdin`.
            idempotency_key: submitting the same again with the same key returns the first id, for as long as that
                execution is kept. 1 to 128 characters of `A-Z a-z 0-9 . _ : -`.
            retry_safe, labels: as `run` has them.

        Raises what `run` does, and IdempotencyConflict for a key that was used for another.
        """
        submission = make_submission(
            command,
            timeout_seconds=timeout_seconds,
            working_directory=working_directory,
            environment=environment,
            stdin=stdin,
            interactive=interactive,
            policy=policy,
            session_id=session_id,
            idempotency_key=idempotency_key,
            retry_safe=retry_safe,
            labels=labels,
        )
        return await self._submit(submission)

    async def wait(self, execution_id: str, *, max_bytes: int = DEFAULT_RESULT_BYTES) -> RunResult:
        """Wait for the end and return the result. Cancelling the wait leaves the execution running."""
        known, most = self._known(execution_id), whole_bytes("max_bytes", max_bytes)
        await self.service.wait(self.principal, known, until_terminal=True)
        return result_of(await self.service.read_ends(self.principal, known, max_bytes=most))

    def follow(self, execution_id: str, *, after: int = 0) -> AsyncGenerator[OutputEvent, None]:
        """Yield the events of an execution numbered over `after` as they come, until the last."""
        return self.service.follow(self.principal, self._known(execution_id), after=after)

    async def cancel(self, execution_id: str, *, force: bool = False) -> bool:
        """Ask an execution to end (SIGTERM, a grace period, SIGKILL; with `force` at once); False when it had ended."""
        return await self.service.cancel(self.principal, self._known(execution_id), force=force)

    async def send_stdin(self, execution_id: str, data: bytes | str, *, end: bool = False) -> None:
        """Send bytes to an interactive execution, as they are; `end` closes its standard input after them.

        Raises NotInteractive, ExecutionFinished, InputClosed, InputFull.
        """
        raw = input_bytes("data", data)
        await self.service.send_input(self.principal, self._known(execution_id), raw, end=end)

    async def list(
        self,
        *,
        session_id: str | None = None,
        statuses: frozenset[ExecutionStatus] = frozenset(),
        limit: int = 50,
        before: str | None = None,
    ) -> ExecutionPage:
        """Return executions, newest first; `before` is the `next_before` of the page before."""
        self._loop.check()
        return await self.service.list_page(
            self.principal,
            session_id=None if session_id is None else parse_session_id(session_id),
            statuses=check_statuses(statuses),
            limit=limit,
            before=None if before is None else parse_list_position(before),
        )

    async def health(self) -> Health:
        """Return how this sandbox is; `unavailable` when the store does not answer within 2 s."""
        queued = await self._availability.depth()
        return Health(
            status="unavailable" if queued is None else "draining" if self.service.draining else "ok",
            version=version("sandbox-mcp"),
            runner=self.runner.name,
            store=self.settings.state,
            queue=self.settings.queue_engine or "local",
            running=self.supervisor.running,
            queued=queued or 0,
            capacity=self.supervisor.capacity,
        )

    async def drain(self, grace_seconds: float | None = None) -> None:
        """Admit nothing new, let running ones finish for the grace (default: the setting), then end and mark them."""
        self.service.drain()
        self.back.changed()
        grace = self.settings.drain_grace_seconds if grace_seconds is None else grace_seconds
        await self.supervisor.drain(grace_seconds=grace)

    def hurry(self) -> None:
        """End the grace of a drain: kill what still runs."""
        self.supervisor.hurry()

    def _known(self, execution_id: str) -> ExecutionId:
        self._loop.check()
        return parse_execution_id(execution_id)

    async def _submit(self, submission: Submission) -> ExecutionId:
        self._loop.check()
        return (await self.service.submit(self.principal, submission)).id

    async def _abandon(self, execution_id: ExecutionId) -> None:
        """Kill what nobody waits for any more. Shielded, and bounded since a store may be away."""
        with anyio.move_on_after(ABANDONED_RUN_SECONDS, shield=True):
            try:
                await self.service.cancel(self.principal, execution_id, force=True)
                await self.service.wait(self.principal, execution_id, until_terminal=True)
            except (InfrastructureError, ExecutionNotFound) as error:
                _log.warning("An abandoned run could not be ended", execution_id=execution_id, problem=str(error))


@asynccontextmanager
async def open_sandbox(
    settings: Settings | None = None, *, runner: ProcessRunner | None = None, clock: Clock | None = None
) -> AsyncIterator[Sandbox]:
    """Open a sandbox: the context owns its processes, and leaving it ends them.

    Enter and leave it in one task. Fixtures of pytest-asyncio do not; those of anyio's own plugin do.

    Args:
        settings: default Settings(), which reads the environment.
        runner: used instead of the one that the settings name; entered here when it is a context manager.
        clock: used instead of the machine's.

    Raises SettingsError, and RunnerUnavailable saying what is missing on this machine.
    """
    settings = Settings() if settings is None else settings
    check_redis(settings)
    check_loop(settings)
    for problem in unknown_variables():
        _log.warning("Unknown variable", problem=problem)
    container = SandboxContainer(settings=settings)
    if runner is not None:
        container.runner.override(runner)
    if clock is not None:
        container.clock.override(clock)
    failure: BaseException | None = None
    async with AsyncExitStack() as stack:
        adapters = [container.connection(), container.store(), container.queue(), container.control()]
        if container.queue_connection() is not container.connection():
            adapters.insert(0, container.queue_connection())
        for adapter in (*adapters, container.messages(), container.runner()):
            if isinstance(adapter, AbstractAsyncContextManager):
                await stack.enter_async_context(adapter)
        sandbox = _assemble(container, settings)
        heartbeat = (
            Heartbeat(container.fleet(), sandbox.back) if settings.shares_state and settings.local_runner else None
        )
        if heartbeat is not None:
            stack.push_async_callback(heartbeat.end)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(sandbox.supervisor.run)
        if heartbeat is not None:
            await heartbeat.beat()
            tasks.start_soon(heartbeat.run)
        if isinstance(places := container.store(), PlacesElsewhere):
            tasks.start_soon(ask_again, places, container.queue())
        _log.info(
            "First-time initialization: ExecutionManager initialised",
            runner=sandbox.runner.name,
            store=settings.state,
            queue=settings.queue_engine or "local",
            capacity=sandbox.supervisor.capacity,
            isolated=sandbox.runner.name in ISOLATING_RUNNERS,
        )
        try:
            yield sandbox
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  # raised again below, outside the task group that would wrap it
            failure = error
        finally:
            # Bounded: a drain without grace ends after the kill grace and its slack.
            with anyio.CancelScope(shield=True):
                await sandbox.drain(grace_seconds=0)
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _assemble(container: SandboxContainer, settings: Settings) -> Sandbox:
    return Sandbox(
        settings=settings,
        service=container.service(),
        supervisor=container.supervisor(),
        store=container.store(),
        queue=container.queue(),
        runner=container.runner(),
        limits=container.limits(),
        capabilities=container.capabilities(),
        back=container.own_back(),
        messages=container.messages(),
        metrics=container.metrics(),
    )
