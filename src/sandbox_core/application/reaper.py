"""Reaper: ends, or queues again, what nobody takes care of any more. Every node may; the store lets one of them."""

from __future__ import annotations

import logging

from sandbox_core.application.endings import describe_retry, never_started, terminal_draft, waited_seconds
from sandbox_core.domain.errors import (
    ClaimRefused,
    ExecutionNotFound,
    InfrastructureError,
    LeaseLost,
    ServerDraining,
    ServerFull,
    StoreUnavailable,
)
from sandbox_core.domain.execution import MAX_ATTEMPTS, Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import ExecutionQueue, QueueItem
from sandbox_core.ports.store import Claim, StateStore

_log = logging.getLogger("sandbox_core.leases")

_REMEMBERED = 100

_LOST = "The node that ran it is gone; what it printed until then is kept."
_LOST_EARLY = "The node that took it is gone and told nothing of its start: it may have run, or not."


class Reaper:
    """Settles what `StateStore.lapsed` names.

    A running execution whose node is gone is `lost`, or waits to be run again when it may be. A pending one whose time
    in the queue is over is `never_started`.

    Args:
        node: who does it.
        lease_seconds: how long the others leave it to this node.
    """

    def __init__(
        self, *, store: StateStore, queue: ExecutionQueue, clock: Clock, node: NodeId, lease_seconds: float
    ) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
        self._node = node
        self._lease_seconds = lease_seconds
        self._hopeless: tuple[ExecutionId, ...] = ()

    async def settle(self, execution_id: ExecutionId) -> None:
        """Settle one; nothing when it has moved on, or another node does it. Raises StoreUnavailable."""
        try:
            await self._settle(execution_id)
        except (ClaimRefused, ExecutionNotFound, LeaseLost):
            return
        except StoreUnavailable:
            raise
        except InfrastructureError as error:
            if execution_id not in self._hopeless:
                _log.error("%s is lost, and cannot be marked so: %s", execution_id, error)
                self._hopeless = (*self._hopeless[-_REMEMBERED:], execution_id)

    async def _settle(self, execution_id: ExecutionId) -> None:
        try:
            claim = await self._store.seize(execution_id, self._node, lease_seconds=self._lease_seconds)
        except ClaimRefused:
            await self._end_overdue(await self._store.load(execution_id))
            return
        if claim.execution.may_retry:
            await self._run_again(claim)
        else:
            await self._end_lost(claim)

    async def _end_overdue(self, execution: Execution) -> None:
        now = self._clock.now()
        limit = execution.policy.resource_limits.queue_timeout_seconds
        if execution.status is not ExecutionStatus.PENDING or limit is None:
            return
        why = (
            f"it waited {waited_seconds(execution, now):.1f} s for {_wanted(execution)}, over its "
            f"queue_timeout_seconds of {limit:g}. Submit it again later, or with more of them in sandbox_config."
        )
        await self._store.finish_unclaimed(*never_started(execution, why, now), only_overdue=True)
        await self._queue.remove(execution.id)
        _log.warning("%s was not started within its %g s in the queue", execution.id, limit)

    async def _end_lost(self, claim: Claim) -> None:
        now, execution = self._clock.now(), claim.execution
        # Clocks of nodes may differ.
        started_at = execution.started_at or now
        known_seconds = max(0.0, (now - started_at).total_seconds())
        outcome = Outcome(
            reason=TerminationReason.LOST,
            message=(_LOST_EARLY if execution.isolation is None else _LOST) + _last_attempt(execution),
            usage=ResourceUsage(wall_seconds=known_seconds, queued_seconds=waited_seconds(execution, started_at)),
        )
        ended = execution.apply(execution.finish(outcome, now))
        await self._store.append(claim.lease, [terminal_draft(ended, outcome, now)], ended)
        _log.warning("%s was lost with its node %s", execution.id, execution.node)

    async def _run_again(self, claim: Claim) -> None:
        """Put it back to pending, then into the queue. Should this process die between, its time in the queue holds."""
        now, execution = self._clock.now(), claim.execution
        again = execution.apply(execution.requeue(now))
        await self._store.append(claim.lease, [describe_retry(again, now)], again)
        _log.warning("%s was lost with its node %s; attempt %d waits", execution.id, execution.node, again.attempt)
        try:
            await self._queue.put(
                QueueItem(
                    execution_id=again.id,
                    principal=again.principal,
                    session_id=again.session_id,
                    queued_at=again.queued_at,
                    labels=again.labels,
                )
            )
        except (ServerFull, ServerDraining) as error:
            _log.warning("%s waits, and is not queued here: %s", execution.id, error)


def _wanted(execution: Execution) -> str:
    return f"a worker that offers {', '.join(execution.labels)}" if execution.labels else "a place"


def _last_attempt(execution: Execution) -> str:
    return f" It was attempt {execution.attempt} of at most {MAX_ATTEMPTS}." if execution.retry_safe else ""
