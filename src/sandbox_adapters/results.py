"""What the Python facade answers: RunResult and Health."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sandbox_core.application.log_view import LogEnds
from sandbox_core.domain.denial import Denial
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import ResourceUsage, TerminationReason
from sandbox_core.domain.status import ExecutionStatus


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended and what it printed. A non-zero exit or a timeout is a result, not an exception.

    `stdout` and `stderr` hold the first and the last of the output when it was more than the policy keeps
    (`usage.dropped_bytes`) or than the caller asked for (`omitted_bytes`).
    """

    execution_id: ExecutionId
    status: ExecutionStatus
    exit_code: int | None
    """As a shell reports it, 128 + signal for a signal; None when no command ran."""
    signal: int | None
    termination_reason: TerminationReason | None
    message: str | None
    stdout: bytes
    stderr: bytes
    omitted_bytes: int
    last_event_id: str
    usage: ResourceUsage
    isolation: Isolation | None
    denials: tuple[Denial, ...] = ()
    """What the sandbox refused, the first refusal first; `denials_omitted` counts the refusals beyond these."""
    denials_omitted: int = 0
    attempt: int = 1
    """Which start of it this is the end of; over 1 only when it was `retry_safe` and workers died."""

    @property
    def ok(self) -> bool:
        """True when the command ran to its end and exited 0."""
        return self.status is ExecutionStatus.COMPLETED and self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Health:
    """How a sandbox is. `running`, `queued` and `capacity` count executions.

    `queue` is the engine that keeps what waits, such as `redis`, or `local` where each server keeps what it accepted.
    """

    status: Literal["ok", "draining", "unavailable"]
    version: str
    runner: str
    store: str
    queue: str
    running: int
    queued: int
    capacity: int


def result_of(ends: LogEnds) -> RunResult:
    """Build the result from a view of the whole log."""
    execution, outcome = ends.execution, ends.execution.outcome
    events = (*ends.head, *ends.tail)
    return RunResult(
        execution_id=execution.id,
        status=execution.status,
        exit_code=None if outcome is None else outcome.exit_code,
        signal=None if outcome is None else outcome.signal,
        termination_reason=None if outcome is None else outcome.reason,
        message=None if outcome is None else outcome.message,
        stdout=_output(events, EventKind.STDOUT),
        stderr=_output(events, EventKind.STDERR),
        omitted_bytes=ends.omitted_bytes,
        last_event_id=str(ends.last_seq),
        usage=ResourceUsage() if outcome is None else outcome.usage,
        isolation=execution.isolation,
        denials=() if outcome is None else outcome.denials,
        denials_omitted=0 if outcome is None else outcome.denials_omitted,
        attempt=execution.attempt,
    )


def _output(events: Iterable[OutputEvent], kind: EventKind) -> bytes:
    return b"".join(event.data for event in events if event.kind is kind)
