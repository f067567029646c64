"""Samples: small ready-made values for tests of stores, queues and services."""

from __future__ import annotations

from sandbox_core.domain.command import Command
from sandbox_core.domain.events import EventDraft, EventKind, FieldValue
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, Principal, SessionId, new_execution_id
from sandbox_core.domain.outcome import Outcome, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.store import Place, Quota

NODE = NodeId("node-1")
OTHER_NODE = NodeId("node-2")
WIDE = Quota(per_node=1_000_000, per_principal=1_000_000, per_session=1_000_000)
"""A quota that nothing here reaches."""

_EXITED = Outcome(TerminationReason.EXITED, exit_code=0)


def pending(
    clock: Clock,
    *,
    principal: Principal = LOCAL_PRINCIPAL,
    session_id: SessionId | None = None,
    command: Command | None = None,
    policy: ExecutionPolicy | None = None,
    queue_timeout_seconds: float | None = None,
    retry_safe: bool = False,
) -> Execution:
    """Return a pending execution with a fresh id, of `true` when no command is given.

    `queue_timeout_seconds` is for the policy that is made when none is given.
    """
    now = clock.now()
    return Execution(
        id=new_execution_id(now),
        principal=principal,
        session_id=session_id,
        command=command if command is not None else Command(argv=("true",)),
        policy=policy or ExecutionPolicy(resource_limits=ResourceLimits(queue_timeout_seconds=queue_timeout_seconds)),
        created_at=now,
        retry_safe=retry_safe,
    )


def ended(execution: Execution, clock: Clock, outcome: Outcome = _EXITED) -> Execution:
    """Return the execution after `outcome`; its status must allow it."""
    return execution.apply(execution.finish(outcome, clock.now()))


def requeued(execution: Execution, clock: Clock) -> Execution:
    """Return a running, `retry_safe` execution as it waits to be run again."""
    return execution.apply(execution.requeue(clock.now()))


def cancelled(execution: Execution, clock: Clock) -> Execution:
    """Return the execution after a cancellation."""
    return ended(execution, clock, Outcome(TerminationReason.CANCELLED, message="cancelled by its caller"))


def printed(clock: Clock, data: bytes, **fields: FieldValue) -> EventDraft:
    """Return a draft of bytes printed on stdout."""
    return EventDraft(EventKind.STDOUT, clock.now(), data, fields)


def retried(clock: Clock) -> EventDraft:
    """Return the draft of the event that parts two attempts."""
    return EventDraft(EventKind.RETRY, clock.now(), b"run again", {"attempt": 2})


def exited(clock: Clock) -> EventDraft:
    """Return the draft of a terminal event."""
    return EventDraft(EventKind.EXIT, clock.now(), b"exited with code 0", {"exit_code": 0})


def place_of(execution: Execution, node: NodeId = NODE) -> Place:
    """Return the place that `execution` takes on `node`."""
    return Place(execution.id, node, execution.principal, execution.session_id)
