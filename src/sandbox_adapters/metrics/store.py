"""CountingStateStore: a StateStore that counts what passes through it."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_adapters.metrics.counts import Counts
from sandbox_core.domain.errors import LeaseLost
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim, Lease, StateStore


class CountingStateStore:
    """Satisfies `StateStore` as `store` does, whose context it leaves to others.

    Every start is a claim and every end is written once, by whoever ends it: so the sum over all processes counts each
    execution once, whatever died between. A write costs a few additions more, and no question.
    """

    def __init__(self, store: StateStore, counts: Counts) -> None:
        self._store = store
        self._counts = counts
        self.create = store.create
        self.discard = store.discard
        self.load = store.load
        self.list_page = store.list_page
        self.seize = store.seize
        self.renew = store.renew
        self.read = store.read
        self.read_last = store.read_last
        self.wait = store.wait
        self.reserve = store.reserve
        self.release = store.release
        self.lapsed = store.lapsed
        self.ping = store.ping

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Move pending to running, and count how long it waited."""
        claim = await self._store.claim(execution_id, node, lease_seconds=lease_seconds)
        execution = claim.execution
        if execution.started_at is not None:
            self._counts.time_in_queue.observe((execution.started_at - execution.queued_at).total_seconds())
        return claim

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        """Append events and a state, and count output, the start and the end among them."""
        try:
            last = await self._store.append(lease, drafts, execution)
        except LeaseLost:
            self._counts.leases_lost += 1
            raise
        printed = self._counts.output_bytes
        for draft in drafts:
            if draft.kind in printed:
                printed[draft.kind] += len(draft.data)
            elif draft.kind is EventKind.READY and execution is not None and execution.started_at is not None:
                self._counts.start_seconds.observe((draft.at - execution.started_at).total_seconds())
        if execution is not None:
            self._count_end(execution)
            self._counts.retries += execution.status is ExecutionStatus.PENDING
        return last

    async def finish_unclaimed(
        self, execution: Execution, drafts: Sequence[EventDraft], *, only_overdue: bool = False
    ) -> None:
        """Store the end of what nobody claimed, and count it."""
        await self._store.finish_unclaimed(execution, drafts, only_overdue=only_overdue)
        self._count_end(execution)

    def _count_end(self, execution: Execution) -> None:
        outcome = execution.outcome
        if outcome is not None:
            self._counts.ended[outcome.reason] += 1
            self._counts.dropped_bytes += outcome.usage.dropped_bytes
