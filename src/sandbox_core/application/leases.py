"""LeaseKeeper: renews the leases of what runs here, and has settled what nobody takes care of any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from sandbox_core.application.reaper import Reaper
from sandbox_core.application.run import ExecutionRun
from sandbox_core.domain.errors import InfrastructureError
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import ExecutionQueue
from sandbox_core.ports.store import StateStore

_log = logging.getLogger("sandbox_core.leases")

LAPSED_AT_ONCE = 100


class LeaseKeeper:
    """Works every third of a lease. Every node keeps and sweeps; the store lets one of them settle each execution.

    After the store was away, and at the start, nothing is ended for one lease: owners that live must have had the time
    to renew what lapsed meanwhile. So a dead node's executions are marked at most four thirds of `lease_seconds` after
    its last renewal, plus the time that the store was away. What waits too long is ended a third of a lease after its
    time at most, where the store and a node have been there for a lease.

    Args:
        runs: what runs here, kept up to date by the supervisor.
        lease_seconds: how long a node may be silent.
        retry_seconds: pause after a store that is away, at most a third of a lease.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        queue: ExecutionQueue,
        clock: Clock,
        node: NodeId,
        runs: Mapping[ExecutionId, ExecutionRun],
        lease_seconds: float,
        retry_seconds: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._reaper = Reaper(store=store, queue=queue, clock=clock, node=node, lease_seconds=lease_seconds)
        self._runs = runs
        self._lease_seconds = lease_seconds
        self._every = lease_seconds / 3
        self._retry = min(retry_seconds, self._every)

    async def work(self) -> None:
        """Keep and sweep until cancelled."""
        now = self._clock.monotonic()
        sweep_from = now + self._lease_seconds
        due = now + self._every
        is_away = False
        while True:
            await self._clock.sleep_until(due)
            now = self._clock.monotonic()
            try:
                await self._renew()
                # Asked for also when nothing may be ended yet: a store that is away must be noticed.
                lapsed = await self._store.lapsed(limit=LAPSED_AT_ONCE)
                if now >= sweep_from:
                    await self._settle_all(lapsed)
            except InfrastructureError as error:
                if not is_away:
                    _log.warning("leases could not be kept: %s", error)
                is_away = True
                now = self._clock.monotonic()
                sweep_from = now + self._lease_seconds
                due = now + self._retry
            else:
                is_away = False
                due = max(due, now) + self._every

    async def _renew(self) -> None:
        held = {id_: run for id_, run in self._runs.items() if run.lease is not None}
        leases = [run.lease for run in held.values() if run.lease is not None]
        if not leases:
            return
        kept = await self._store.renew(leases, lease_seconds=self._lease_seconds)
        lost = held.keys() - {lease.execution_id for lease in kept}
        for execution_id in lost & self._runs.keys():
            held[execution_id].end(TerminationReason.LOST, "Another node took over.", force=True)

    async def _settle_all(self, lapsed: Sequence[ExecutionId]) -> None:
        """Settle these, and what has lapsed beside them."""
        seen: set[ExecutionId] = set()
        while fresh := [execution_id for execution_id in lapsed if execution_id not in seen]:
            seen.update(fresh)
            for execution_id in fresh:
                if execution_id not in self._runs:
                    await self._reaper.settle(execution_id)
            if len(lapsed) < LAPSED_AT_ONCE:
                return
            lapsed = await self._store.lapsed(limit=LAPSED_AT_ONCE)
