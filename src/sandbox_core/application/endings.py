"""How a run's end is put into words and values: outcome, terminal event, limit events. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sandbox_core.application.output_log import OutputBuffer
from sandbox_core.domain.denial import bounded
from sandbox_core.domain.events import EventDraft, EventKind, FieldValue
from sandbox_core.domain.execution import MAX_ATTEMPTS, Execution
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.runner import LimitHit, ProcessExit

CANCELLED_ON_REQUEST = "Cancelled on request."
"""The message of an execution that its caller cancelled; others say who ended it."""

_KIND_OF_STATUS = {
    ExecutionStatus.COMPLETED: EventKind.EXIT,
    ExecutionStatus.TIMEOUT: EventKind.TIMEOUT,
    ExecutionStatus.CANCELLED: EventKind.CANCELLED,
    ExecutionStatus.FAILED: EventKind.ERROR,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the supervisor ends a run before it ends by itself. `force`: without the grace period."""

    reason: TerminationReason
    message: str
    force: bool
    limit: LimitHit | None = None


def outcome_of(
    exit_: ProcessExit,
    ending: Ending | None,
    output: OutputBuffer,
    *,
    wall_seconds: float,
    setup_seconds: float,
    queued_seconds: float,
) -> Outcome:
    """Combine what the runner saw and what the supervisor wanted; the supervisor's reason goes first."""
    reason = exit_.reason if ending is None else ending.reason
    message = exit_.message if ending is None else ending.message
    denials, more_omitted = bounded(exit_.denials)
    return Outcome(
        reason=reason,
        exit_code=exit_.exit_code,
        signal=exit_.signal,
        message=message,
        usage=ResourceUsage(
            wall_seconds=round(wall_seconds, 6),
            user_cpu_seconds=exit_.user_cpu_seconds,
            system_cpu_seconds=exit_.system_cpu_seconds,
            max_rss_bytes=exit_.max_rss_bytes,
            peak_memory_bytes=exit_.peak_memory_bytes,
            peak_processes=exit_.peak_processes,
            processes_left=exit_.processes_left,
            stdout_bytes=output.printed_bytes[EventKind.STDOUT],
            stderr_bytes=output.printed_bytes[EventKind.STDERR],
            dropped_bytes=output.dropped_bytes,
            queued_seconds=queued_seconds,
            setup_seconds=round(setup_seconds, 6),
            network_sent_bytes=exit_.network_sent_bytes,
            network_received_bytes=exit_.network_received_bytes,
        ),
        denials=denials,
        denials_omitted=exit_.denials_omitted + more_omitted,
    )


def terminal_draft(execution: Execution, outcome: Outcome, at: datetime) -> EventDraft:
    """Return the one event that ends the log."""
    fields: dict[str, FieldValue] = {
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "reason": outcome.reason,
        "duration_ms": round(outcome.usage.wall_seconds * 1000, 3),
    }
    if outcome.status is ExecutionStatus.TIMEOUT:
        limits = execution.policy.resource_limits
        wall = outcome.reason is TerminationReason.WALL_TIME
        fields["timeout_seconds"] = limits.timeout_seconds if wall else limits.idle_timeout_seconds
    text = outcome.message or _default_text(outcome)
    return EventDraft(_KIND_OF_STATUS[outcome.status], at, text.encode(), fields)


def never_started(execution: Execution, why: str, at: datetime) -> tuple[Execution, list[EventDraft]]:
    """Return the end of a pending execution that nobody will start, as `finish_unclaimed` takes it.

    `why` is a whole sentence. One that was to be run again did start once, so it is `lost` all the same.
    """
    if execution.attempt == 1:
        return unstarted(execution, TerminationReason.NEVER_STARTED, f"Never started: {why}", at)
    before = f"Attempt {execution.attempt - 1} was lost with its node, and attempt {execution.attempt} never started: "
    return unstarted(execution, TerminationReason.LOST, before + why, at)


def unstarted(
    execution: Execution, reason: TerminationReason, message: str, at: datetime
) -> tuple[Execution, list[EventDraft]]:
    """Return the end of a pending execution, and the event that ends its log, as `finish_unclaimed` takes them."""
    outcome = Outcome(reason=reason, message=message, usage=ResourceUsage(queued_seconds=waited_seconds(execution, at)))
    return execution.apply(execution.finish(outcome, at)), [terminal_draft(execution, outcome, at)]


def waited_seconds(execution: Execution, until: datetime) -> float:
    """Return how long this attempt has waited; clocks of nodes may differ, so never less than 0."""
    return max(0.0, round((until - execution.queued_at).total_seconds(), 6))


def describe_limit(hit: LimitHit, at: datetime) -> EventDraft:
    """Return the event that names a limit which ended or hurt the run."""
    reached = "" if hit.reached is None else f", reached {hit.reached:g}"
    text = f"The limit {hit.name} of {hit.limit:g} was hit{reached}."
    return EventDraft(
        EventKind.RESOURCE_LIMIT, at, text.encode(), {"name": hit.name, "limit": hit.limit, "reached": hit.reached}
    )


def describe_retry(execution: Execution, at: datetime) -> EventDraft:
    """Return the event that parts what a lost attempt printed from what the one that is waited for will."""
    text = (
        "The node that ran it is gone. It was submitted as retry_safe, so it is run again: "
        f"attempt {execution.attempt} of at most {MAX_ATTEMPTS}."
    )
    return EventDraft(EventKind.RETRY, at, text.encode(), {"attempt": execution.attempt, "max_attempts": MAX_ATTEMPTS})


def _default_text(outcome: Outcome) -> str:
    if outcome.signal is not None:
        return f"Ended by signal {outcome.signal}."
    return f"Exited with code {outcome.exit_code}."
