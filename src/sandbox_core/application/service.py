"""ExecutionService: the front. One coroutine per use case; checks the owner on every access."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio

from sandbox_core.application.endings import unstarted
from sandbox_core.application.log_view import LogEnds, cut_ends
from sandbox_core.application.repeats import check_retry_safe, check_same_request, put_back
from sandbox_core.application.servable import check_servable
from sandbox_core.domain.command import MAX_STDIN_BYTES, Command
from sandbox_core.domain.errors import (
    CallerError,
    ClaimRefused,
    ExecutionFinished,
    ExecutionNotFound,
    InfrastructureError,
    InputClosed,
    InputFull,
    InvalidArgument,
    NotInteractive,
    OwnerUnreachable,
    PolicyRefused,
    PolicyViolation,
    ServerDraining,
    ServerFull,
)
from sandbox_core.domain.events import MAX_EVENT_BYTES, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId, new_execution_id, parse_idempotency_key
from sandbox_core.domain.labels import parse_labels
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, resolve
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.control import Cancel, ControlAnswer, ControlChannel, ControlMessage, SendInput
from sandbox_core.ports.fleet import Fleet, NoFleet
from sandbox_core.ports.queue import ExecutionQueue, QueueItem
from sandbox_core.ports.store import ExecutionPage, ListQuery, LogPage, StateStore

DEFAULT_READ_BYTES = 128 * 1024
LARGEST_READ_EVENTS = 10_000
"""Events of one reading from one end. Each costs about as much as a hundred bytes of output, however small it is."""

LARGEST_PAGE = 200
REMEMBERED = 1000
"""How many of the newest submissions a service knows the principals of without asking the store."""

INPUT_WAIT_SECONDS = 10.0
"""How long input waits for an execution that has not started yet."""

TAKE_BACK_SECONDS = 10.0
"""How long what could not be queued is being taken back before its caller is told."""

Screen = Callable[[ExecutionPolicy], Sequence[PolicyViolation]]
"""What the back could not enforce of a resolved policy, known to the front (`ProcessRunner.unenforceable`)."""


def accepts_every_policy(_: ExecutionPolicy) -> Sequence[PolicyViolation]:
    """The screen of a front whose back is elsewhere: the back refuses, before launch."""
    return ()


@dataclass(frozen=True, slots=True)
class Submission:
    """A request to run one command. `policy` is what is asked; None fields take the defaults.

    `retry_safe`: when whoever runs it is gone, run it again, see `Execution`. `idempotency_key`: submitting again with
    the same key (see `parse_idempotency_key`) returns the first execution, as long as that is kept. `labels` are what
    the back must offer that runs it; see `domain.labels`.
    """

    command: Command
    policy: ExecutionPolicy = field(default_factory=ExecutionPolicy)
    session_id: SessionId | None = None
    idempotency_key: str | None = None
    retry_safe: bool = False
    labels: frozenset[str] = frozenset()


class ExecutionService:
    """Accepts requests and answers questions. Holds no execution state of its own.

    Every method that names an execution raises ExecutionNotFound for one that is unknown, expired, or belongs to
    another principal: the caller cannot tell which.

    Args:
        ceiling: the most that a request may ask for.
        defaults: what a request gets that asks for nothing.
        screen: see Screen.
        fleet: asked, when labels are, whether anybody offers them; by default nobody does.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        queue: ExecutionQueue,
        control: ControlChannel,
        clock: Clock,
        ceiling: ExecutionPolicy,
        defaults: ExecutionPolicy,
        screen: Screen = accepts_every_policy,
        fleet: Fleet | None = None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._control = control
        self._clock = clock
        self._ceiling = ceiling
        self._defaults = defaults
        self._screen = screen
        self._fleet = NoFleet() if fleet is None else fleet
        self._draining = False
        self._waits: set[anyio.CancelScope] = set()
        self._waits_over = False
        self._submitted: OrderedDict[ExecutionId, Principal] = OrderedDict()

    @property
    def draining(self) -> bool:
        """True once `drain` was called."""
        return self._draining

    def drain(self) -> None:
        """Admit nothing new from now on; everything else goes on being answered."""
        self._draining = True

    def end_waits(self) -> None:
        """Let every `wait` return False now, and at once from now on: callers go on waiting at another replica."""
        self._waits_over = True
        for scope in self._waits:
            scope.cancel()

    async def submit(self, principal: Principal, submission: Submission) -> Execution:
        """Store a pending execution and queue it.

        With an idempotency key that this principal used for the same request, returns that execution as it is now.
        Raises PolicyRefused naming every refused field, IdempotencyConflict for a key that was used for another
        request, InvalidArgument, Unservable when no living back offers the labels, ServerFull with the time to try
        again, ServerDraining.
        """
        if self._draining:
            raise ServerDraining
        policy = self._resolve(submission.policy)
        labels = tuple(sorted(parse_labels(submission.labels)))
        now = self._clock.now()
        wanted = Execution(
            id=new_execution_id(now),
            principal=principal,
            session_id=submission.session_id,
            command=submission.command,
            policy=policy,
            created_at=now,
            retry_safe=submission.retry_safe,
            labels=labels,
        )
        check_retry_safe(wanted)
        key = None if submission.idempotency_key is None else parse_idempotency_key(submission.idempotency_key)
        execution = await self._store.create(wanted, idempotency_key=key)
        if execution.id != wanted.id:
            check_same_request(execution, wanted)
            return execution
        try:
            if labels:
                await check_servable(self._fleet, submission.labels)
            await self._queue.put(
                QueueItem(
                    execution_id=execution.id,
                    principal=principal,
                    session_id=execution.session_id,
                    queued_at=now,
                    labels=labels,
                )
            )
        except BaseException as error:
            # In doubt it was queued after all, and may run. Under a key its caller comes back to it; else nobody can.
            is_unwanted = key is None and not isinstance(error, CallerError)
            with anyio.move_on_after(TAKE_BACK_SECONDS, shield=True):
                await self._take_back(execution, end_it=is_unwanted)
            raise
        self._submitted[execution.id] = principal
        if len(self._submitted) > REMEMBERED:
            self._submitted.popitem(last=False)
        return execution

    async def get(self, principal: Principal, execution_id: ExecutionId) -> Execution:
        """Return the execution as it is now."""
        return _owned(principal, await self._store.load(execution_id))

    async def list_page(
        self,
        principal: Principal,
        *,
        session_id: SessionId | None = None,
        statuses: frozenset[ExecutionStatus] = frozenset(),
        limit: int = 50,
        before: ExecutionId | None = None,
    ) -> ExecutionPage:
        """Return the principal's executions, newest first; `limit` is 1 to 200."""
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidArgument("limit", f"is {limit}; it must be 1 to {LARGEST_PAGE}")
        return await self._store.list_page(
            ListQuery(principal=principal, session_id=session_id, statuses=statuses, limit=limit, before=before)
        )

    async def read(
        self,
        principal: Principal,
        execution_id: ExecutionId,
        *,
        after: int = 0,
        max_bytes: int = DEFAULT_READ_BYTES,
        max_events: int = LARGEST_READ_EVENTS,
    ) -> LogPage:
        """Return events numbered over `after`, oldest first; the first comes even when it is over `max_bytes`."""
        page = await self._store.read(execution_id, after=after, max_events=max_events, max_bytes=max_bytes)
        _owned(principal, page.execution)
        return page

    async def read_tail(
        self, principal: Principal, execution_id: ExecutionId, *, max_bytes: int = DEFAULT_READ_BYTES
    ) -> LogPage:
        """Return the newest events whose data fits `max_bytes`, 10 000 at most, oldest first; the newest always."""
        page = await self.read(principal, execution_id, max_events=LARGEST_READ_EVENTS, max_bytes=max_bytes)
        if not page.events or page.events[-1].seq == page.last_seq:
            return page
        return await self._newest(page, 0, max_bytes)

    async def read_ends(
        self, principal: Principal, execution_id: ExecutionId, *, after: int = 0, max_bytes: int = DEFAULT_READ_BYTES
    ) -> LogEnds:
        """Return all events over `after` when their output fits `max_bytes`, else the first and the last of them.

        20 000 events at most, whatever they hold.
        """
        # One event more than asked for, so that each end has output in it to be cut.
        enough = max_bytes + MAX_EVENT_BYTES
        page = await self.read(principal, execution_id, after=after, max_bytes=enough)
        if not page.events or page.events[-1].seq == page.last_seq:
            return cut_ends(page, None, max_bytes)
        return cut_ends(page, await self._newest(page, after, enough), max_bytes)

    async def _newest(self, first: LogPage, after: int, max_bytes: int) -> LogPage:
        """Return the newest events of the log that `first` was read of, and few more than LARGEST_READ_EVENTS."""
        since = max(after, first.last_seq - LARGEST_READ_EVENTS)
        return await self._store.read_last(first.execution.id, after=since, max_bytes=max_bytes)

    async def wait(
        self,
        principal: Principal,
        execution_id: ExecutionId,
        *,
        after: int = 0,
        until_terminal: bool = False,
        timeout_seconds: float | None = None,
    ) -> bool:
        """Wait for an event numbered over `after`, or with `until_terminal` for the end; False when time ran out."""
        # Whose it is that was just submitted here is known, and the wait itself sees whether it has ended.
        patient = not self._waits_over and (timeout_seconds is None or timeout_seconds >= 1)
        known = patient and self._submitted.get(execution_id) == principal
        if not known and (await self.get(principal, execution_id)).is_terminal:
            return True
        with anyio.move_on_after(0 if self._waits_over else timeout_seconds) as scope:
            self._waits.add(scope)
            try:
                await self._store.wait(execution_id, after=after, until_terminal=until_terminal)
            finally:
                self._waits.discard(scope)
            return True
        return False

    async def follow(
        self, principal: Principal, execution_id: ExecutionId, *, after: int = 0
    ) -> AsyncGenerator[OutputEvent, None]:
        """Yield every event numbered over `after` as it comes; ends after the terminal one."""
        while True:
            page = await self.read(principal, execution_id, after=after, max_bytes=1 << 20)
            for event in page.events:
                yield event
                after = event.seq
            if after >= page.last_seq:
                if page.execution.is_terminal:
                    return
                await self._store.wait(execution_id, after=after)

    async def send_input(
        self, principal: Principal, execution_id: ExecutionId, data: bytes, *, end: bool = False
    ) -> None:
        """Send bytes to the standard input of an interactive execution; `end` closes it after them.

        Accepted means buffered for the program, in order; at most 1 MiB at once. An execution that waits for its place
        is waited for, 10 s at most. Raises NotInteractive, ExecutionFinished, InputClosed, InputFull, ServerFull.
        """
        if len(data) > MAX_STDIN_BYTES:
            raise InvalidArgument("input_data", f"is {len(data)} bytes; send at most {MAX_STDIN_BYTES} at once")
        execution = await self.get(principal, execution_id)
        if execution.is_terminal:
            raise ExecutionFinished(execution_id, execution.status)
        if not execution.command.interactive:
            raise NotInteractive(execution_id)
        if execution.status is ExecutionStatus.PENDING:
            with anyio.move_on_after(INPUT_WAIT_SECONDS) as waiting:
                await self._store.wait(execution_id, after=0)
            if waiting.cancelled_caught:
                raise ServerFull(f"execution {execution_id} is still waiting for a place", 10)
        answer = await self._tell(execution_id, SendInput(data=data, end=end))
        match answer:
            case ControlAnswer.DELIVERED:
                return
            case ControlAnswer.NOT_INTERACTIVE:
                raise NotInteractive(execution_id)
            case ControlAnswer.INPUT_CLOSED:
                raise InputClosed(execution_id)
            case ControlAnswer.INPUT_FULL:
                raise InputFull(execution_id, MAX_STDIN_BYTES)
            case ControlAnswer.FINISHED | ControlAnswer.NO_OWNER:
                execution = await self.get(principal, execution_id)
                raise ExecutionFinished(execution_id, execution.status)

    async def cancel(self, principal: Principal, execution_id: ExecutionId, *, force: bool = False) -> bool:
        """Ask an execution to end; True when it had not ended yet.

        Gracefully: SIGTERM, a grace period, SIGKILL. With `force`: SIGKILL at once. Returns when the request is with
        the owner; `wait` tells when it has ended. An execution that waits for its place ends here and now; one that is
        `retry_safe` and whose owner does not answer is waited for, 20 s at most, until it waits again or has an owner.
        """
        execution = await self.get(principal, execution_id)
        if execution.is_terminal:
            return False
        if execution.status is ExecutionStatus.PENDING:
            again = "" if execution.attempt == 1 else " again"
            reason, message = TerminationReason.CANCELLED, f"Cancelled before it started{again}."
            try:
                await self._store.finish_unclaimed(*unstarted(execution, reason, message, self._clock.now()))
            except ClaimRefused:
                pass  # it was claimed meanwhile, so it has an owner to tell
            else:
                await self._queue.remove(execution_id)
                return True
        try:
            answer = await self._tell(execution_id, Cancel(force=force))
        except OwnerUnreachable:
            if not await put_back(self._store, execution):
                raise
            return await self.cancel(principal, execution_id, force=force)
        return answer is ControlAnswer.DELIVERED

    async def _take_back(self, execution: Execution, *, end_it: bool) -> None:
        """Forget what could not be queued; with `end_it` also end it when somebody has claimed it meanwhile."""
        with suppress(InfrastructureError, ExecutionNotFound):  # why it could not be queued is what the caller is told
            await self._store.discard(execution.id)
            if end_it:
                await self.cancel(execution.principal, execution.id, force=True)

    def _resolve(self, request: ExecutionPolicy) -> ExecutionPolicy:
        """Return the policy to enforce. A refusal names everything at once; what no runner here can do goes first."""
        try:
            policy = resolve(request, ceiling=self._ceiling, defaults=self._defaults)
        except PolicyRefused as refused:
            impossible = self._screen(request)
            known = {violation.field for violation in impossible}
            forbidden = [violation for violation in refused.violations if violation.field not in known]
            raise PolicyRefused([*impossible, *forbidden]) from None
        if violations := self._screen(policy):
            raise PolicyRefused(violations)
        return policy

    async def _tell(self, execution_id: ExecutionId, message: ControlMessage) -> ControlAnswer:
        answer = await self._control.tell(execution_id, message)
        if answer is ControlAnswer.NO_OWNER:
            # An owner registers before it claims and leaves after its last write, so running without one is a lost one.
            execution = await self._store.load(execution_id)
            if not execution.is_terminal:
                raise OwnerUnreachable(execution_id)
        return answer


def _owned(principal: Principal, execution: Execution) -> Execution:
    if execution.principal != principal:
        raise ExecutionNotFound(execution.id)
    return execution
