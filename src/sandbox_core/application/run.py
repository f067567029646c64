"""ExecutionRun: one claimed execution, from launch to its terminal event."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace

import anyio

from sandbox_core.application.endings import (
    CANCELLED_ON_REQUEST,
    Ending,
    describe_limit,
    outcome_of,
    terminal_draft,
    waited_seconds,
)
from sandbox_core.application.output_log import OutputBuffer
from sandbox_core.domain.command import MAX_STDIN_BYTES
from sandbox_core.domain.errors import InputClosed, LeaseLost, SandboxError, StoreUnavailable
from sandbox_core.domain.events import MAX_EVENT_BYTES, EventDraft, EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlMessage, SendInput
from sandbox_core.ports.runner import Launch, LimitHit, Process, ProcessExit, ProcessRunner, Stream
from sandbox_core.ports.store import Claim, Lease, StateStore

_log = logging.getLogger("sandbox_core.run")

READ_BYTES = 256 * 1024
_KIND = {Stream.STDOUT: EventKind.STDOUT, Stream.STDERR: EventKind.STDERR}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How a run behaves.

    Args:
        kill_grace_seconds: between SIGTERM and SIGKILL of a graceful end.
        coalesce_seconds: how long output waits for more before it is stored.
        quiet_seconds: how long the word that it started waits for output or the end, to be stored with it.
        waiting_output_bytes: output not stored yet past which the pipes are not read.
        flood_bytes: a run that prints more than this, kept or not, is ended with reason `output`.
        store_retry_seconds: the longest pause between tries to write to a store that is away.
        last_word_seconds: how long a run that is being cancelled tries to store its outcome.
    """

    kill_grace_seconds: float = 5.0
    coalesce_seconds: float = 0.003
    quiet_seconds: float = 0.025
    waiting_output_bytes: int = 512 * 1024
    flood_bytes: int = 4 << 30
    store_retry_seconds: float = 2.0
    last_word_seconds: float = 2.0


class ExecutionRun:
    """Runs one execution. `handle` may be called from its creation on; `execute` once, after the claim."""

    def __init__(self, *, runner: ProcessRunner, store: StateStore, clock: Clock, config: RunConfig) -> None:
        self._runner = runner
        self._store = store
        self._clock = clock
        self._config = config
        self._ending: Ending | None = None
        self._ending_changed = anyio.Event()
        self._finished = False
        self._input: deque[bytes] = deque()
        self._input_bytes = 0
        self._input_ends = False
        self._input_closed = False
        self._input_changed = anyio.Event()
        self._some_output = anyio.Event()
        self._much_output = anyio.Event()
        self._drained = anyio.Event()
        self._output_over = False
        self._lease_lost = False
        self._early: list[EventDraft] = []
        self._last_output = 0.0
        self._printed = 0
        self._lease: Lease | None = None

    @property
    def lease(self) -> Lease | None:
        """The lease it writes with; None before the claim."""
        return self._lease

    def end(self, reason: TerminationReason, message: str, *, force: bool, limit: LimitHit | None = None) -> None:
        """Ask the run to end. The first reason stays; a later `force` only hurries. One that ended by itself did so."""
        if self._finished:
            return
        if self._ending is None:
            self._ending = Ending(reason=reason, message=message, force=force, limit=limit)
        elif force:
            self._ending = replace(self._ending, force=True)
        self._ending_changed.set()

    async def handle(self, message: ControlMessage) -> ControlAnswer:
        """Answer a message from the control channel."""
        if self._finished:
            return ControlAnswer.FINISHED
        match message:
            case Cancel():
                self.end(TerminationReason.CANCELLED, CANCELLED_ON_REQUEST, force=message.force)
                return ControlAnswer.DELIVERED
            case SendInput():
                return self._take_input(message)

    async def execute(self, claim: Claim) -> None:
        """Launch, pump, obey, and store the outcome. Raises LeaseLost when another node has taken over."""
        self._lease = claim.lease
        execution = claim.execution
        command = execution.command
        if command.stdin:
            self._input.append(command.stdin)
            self._input_bytes = len(command.stdin)
        if not command.interactive:
            self._input_ends = True
        self._output = OutputBuffer(execution.policy.resource_limits.max_output_bytes)
        started = self._clock.monotonic()
        setup_seconds = 0.0
        if self._ending is not None:
            exit_ = ProcessExit(reason=self._ending.reason)
        else:
            try:
                exit_, execution, setup_seconds = await self._run_process(execution, started)
            except SandboxError as error:
                exit_ = ProcessExit(reason=TerminationReason.SETUP_FAILED, message=str(error))
                setup_seconds = self._clock.monotonic() - started
        if self._lease_lost:
            raise LeaseLost(execution.id)
        wall_seconds = self._clock.monotonic() - started
        await self._store_outcome(execution, exit_, wall_seconds, setup_seconds)

    async def _run_process(self, execution: Execution, started: float) -> tuple[ProcessExit, Execution, float]:
        launch = Launch(execution.id, execution.command, execution.policy, execution.principal)
        async with AsyncExitStack() as stack:
            process = await stack.enter_async_context(self._runner.start(launch))
            setup_seconds = self._clock.monotonic() - started
            execution = execution.apply(execution.prepare(process.isolation))
            self._early.append(EventDraft(EventKind.READY, self._clock.now(), b"The sandbox is ready."))
            self._last_output = self._clock.monotonic()
            writer_done = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write_output, execution, writer_done)
                tasks.start_soon(self._enforce_ending, process)
                tasks.start_soon(self._watch_deadlines, execution)
                if self._input or execution.command.interactive:
                    tasks.start_soon(self._feed_input, process)
                else:
                    await process.close_stdin()
                    self._input_closed = True
                async with anyio.create_task_group() as pumps:
                    pumps.start_soon(self._pump, process, Stream.STDOUT)
                    pumps.start_soon(self._pump, process, Stream.STDERR)
                    exit_ = await process.wait()
                self._finished = True
                self._output_over = True
                self._some_output.set()
                self._much_output.set()
                await writer_done.wait()
                tasks.cancel_scope.cancel()
        return exit_, execution, setup_seconds

    async def _pump(self, process: Process, stream: Stream) -> None:
        kind = _KIND[stream]
        while data := await process.read(stream, READ_BYTES):
            self._last_output = self._clock.monotonic()
            self._printed += len(data)
            self._output.feed(kind, data, self._clock.now())
            if self._printed > self._config.flood_bytes:
                self._end_flood()
            if self._output.waiting_bytes:
                self._some_output.set()
            if self._output.waiting_bytes >= MAX_EVENT_BYTES:
                self._much_output.set()
            while self._output.waiting_bytes > self._config.waiting_output_bytes and not self._lease_lost:
                await self._drained.wait()

    def _end_flood(self) -> None:
        limit = LimitHit("flood_bytes", self._config.flood_bytes, self._printed)
        self.end(TerminationReason.OUTPUT, "Ended: it printed far too much.", force=True, limit=limit)

    async def _write_output(self, execution: Execution, done: anyio.Event) -> None:
        """Store output as it comes, a few milliseconds after its first byte, or at once when there is much."""
        unsaved: Execution | None = execution
        with anyio.move_on_after(self._config.quiet_seconds):
            await self._some_output.wait()
        while True:
            if not self._early:
                await self._some_output.wait()
            if self._some_output.is_set():
                with anyio.move_on_after(self._config.coalesce_seconds):
                    await self._much_output.wait()
            if self._output_over:
                break
            self._some_output, self._much_output = anyio.Event(), anyio.Event()
            drafts = self._early + self._output.take()
            self._early = []
            drained, self._drained = self._drained, anyio.Event()
            drained.set()
            try:
                await self._append(drafts, unsaved)
            except LeaseLost:
                self._lease_lost = True
                self.end(TerminationReason.LOST, "Another node took over.", force=True)
                # Nobody takes output any more: let pumps that wait for room read on to the end.
                self._drained.set()
                break
            unsaved = None
        done.set()

    async def _feed_input(self, process: Process) -> None:
        try:
            while True:
                while self._input:
                    data = self._input[0]
                    await process.send_stdin(data)
                    self._input.popleft()
                    self._input_bytes -= len(data)
                if self._input_ends:
                    await process.close_stdin()
                    break
                self._input_changed = anyio.Event()
                await self._input_changed.wait()
        except InputClosed:
            pass  # the program closed its standard input, or ended
        self._input_closed = True

    def _take_input(self, message: SendInput) -> ControlAnswer:
        # `execute` may not have begun: what is buffered here is fed when the process exists.
        if self._input_closed or self._input_ends:
            return ControlAnswer.INPUT_CLOSED
        if message.data:
            if self._input_bytes + len(message.data) > MAX_STDIN_BYTES:
                return ControlAnswer.INPUT_FULL
            self._input.append(message.data)
            self._input_bytes += len(message.data)
        self._input_ends = message.end
        self._input_changed.set()
        return ControlAnswer.DELIVERED

    async def _watch_deadlines(self, execution: Execution) -> None:
        limits = execution.policy.resource_limits
        wall, idle = limits.timeout_seconds, limits.idle_timeout_seconds
        if wall is None and idle is None:
            return
        start = self._clock.monotonic()
        while self._ending is None and not self._finished:
            now = self._clock.monotonic()
            wall_end = start + wall if wall is not None else float("inf")
            idle_end = self._last_output + idle if idle is not None else float("inf")
            if now >= wall_end:
                self.end(TerminationReason.WALL_TIME, f"Killed after its {wall:g} s.", force=True)
            elif now >= idle_end:
                self.end(TerminationReason.IDLE_TIME, f"Killed after {idle:g} s without output.", force=True)
            else:
                await self._clock.sleep_until(min(wall_end, idle_end))

    async def _enforce_ending(self, process: Process) -> None:
        await self._ending_changed.wait()
        if not self._forced:
            self._ending_changed = anyio.Event()
            await process.terminate()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_grace, tasks.cancel_scope)
                while not self._forced:
                    await self._ending_changed.wait()
                    self._ending_changed = anyio.Event()
                tasks.cancel_scope.cancel()
        await process.kill()

    @property
    def _forced(self) -> bool:
        return self._ending is not None and self._ending.force

    async def _end_grace(self, scope: anyio.CancelScope) -> None:
        await self._clock.sleep_until(self._clock.monotonic() + self._config.kill_grace_seconds)
        scope.cancel()

    async def _store_outcome(
        self, execution: Execution, exit_: ProcessExit, wall_seconds: float, setup_seconds: float
    ) -> None:
        self._finished = True
        now = self._clock.now()
        started_at = execution.started_at or now
        outcome = outcome_of(
            exit_,
            self._ending,
            self._output,
            wall_seconds=wall_seconds,
            setup_seconds=setup_seconds,
            queued_seconds=waited_seconds(execution, started_at),
        )
        drafts = self._early + self._output.finish(now)
        hits = (*exit_.limits_hit, *((self._ending.limit,) if self._ending and self._ending.limit else ()))
        drafts.extend(describe_limit(hit, now) for hit in hits)
        drafts.append(terminal_draft(execution, outcome, now))
        ended = execution.apply(execution.finish(outcome, now))
        try:
            await self._append(drafts, ended)
        except anyio.get_cancelled_exc_class():
            # The process tree is gone and only the word of it is missing: one last bounded try.
            with anyio.move_on_after(self._config.last_word_seconds, shield=True), suppress(LeaseLost):
                await self._append(drafts, ended)
            raise

    async def _append(self, drafts: list[EventDraft], execution: Execution | None) -> None:
        """Append, trying again while the store is away: the pipes fill up and slow the program meanwhile."""
        pause = first_pause = 0.05
        lease = self._lease
        if lease is None:
            raise RuntimeError("a run writes only after its claim")
        while True:
            try:
                await self._store.append(lease, drafts, execution)
            except StoreUnavailable as error:
                if pause == first_pause:
                    _log.warning("store unavailable, output of %s waits: %s", lease.execution_id, error)
                await self._clock.sleep_until(self._clock.monotonic() + pause)
                pause = min(pause * 2, self._config.store_retry_seconds)
            else:
                return
