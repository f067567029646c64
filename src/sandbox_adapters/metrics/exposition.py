"""Metrics: the counts of this process and the state of its queue, as Prometheus reads them.

The formats are those of prometheus-client, with a registry that holds nothing of its own: no process, platform or
garbage collector figures, and nothing of other users of that library in the same process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Final

import anyio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from sandbox_adapters.metrics.counts import Counts, Histogram, RoundTrips
from sandbox_core.application.remote import Back
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import InfrastructureError
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.queue import ExecutionQueue, QueueStats

FRESH_SECONDS: Final = 1.0
"""The queue is asked at most once in so long, however many scrape."""

ANSWER_SECONDS: Final = 2.0
"""How long a scrape waits for the queue."""


class Metrics:
    """Tells what one process counted. A scrape costs one question to the queue, at most once in FRESH_SECONDS.

    Args:
        counts: kept by a CountingStateStore.
        connections: the ways to servers by what they are for, in a few words of ours; empty with state in memory.
    """

    def __init__(
        self,
        *,
        counts: Counts,
        queue: ExecutionQueue,
        back: Back,
        service: ExecutionService,
        clock: Clock,
        connections: Mapping[str, RoundTrips],
    ) -> None:
        self._counts = counts
        self._queue = queue
        self._back = back
        self._service = service
        self._clock = clock
        self._connections = connections
        self._version = version("sandbox-mcp")
        self._asking = anyio.Lock()
        self._stats: QueueStats | None = None
        self._fresh_until = 0.0

    @property
    def connections(self) -> frozenset[str]:
        """What the connections are for whose round trips are told."""
        return frozenset(self._connections)

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the text and its content type: OpenMetrics where the `Accept` header asks for it.

        A queue that does not answer is told as `sandbox_queue_up 0`, without depth and age.
        """
        async with self._asking:
            if self._clock.monotonic() >= self._fresh_until:
                self._stats = await self._ask()
                self._fresh_until = self._clock.monotonic() + FRESH_SECONDS
            stats = self._stats
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self._families(stats)))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    async def _ask(self) -> QueueStats | None:
        with anyio.move_on_after(ANSWER_SECONDS):
            try:
                return await self._queue.stats()
            except InfrastructureError:
                return None
        return None

    def _families(self, stats: QueueStats | None) -> Iterator[Metric]:
        yield from _of_queue(stats, self._clock.now())
        yield from self._of_slots()
        counts = self._counts
        ended = CounterMetricFamily("sandbox_executions", "Executions that ended, by reason.", labels=["reason"])
        for reason, count in counts.ended.items():
            ended.add_metric([reason], count)
        yield ended
        yield _histogram(
            "sandbox_time_in_queue_seconds", "From submission until a back claimed it.", counts.time_in_queue
        )
        yield _histogram("sandbox_start_seconds", "From the claim until the sandbox was ready.", counts.start_seconds)
        output = CounterMetricFamily("sandbox_output_bytes", "Output that was stored.", labels=["stream"])
        for kind, count in counts.output_bytes.items():
            output.add_metric([kind], count)
        yield output
        yield _counter("sandbox_output_dropped_bytes", "Output past the cap of its execution.", counts.dropped_bytes)
        yield _counter("sandbox_leases_lost", "Executions that another node took over.", counts.leases_lost)
        yield _counter("sandbox_retries", "Lost executions that were queued again.", counts.retries)
        if self._connections:
            yield from self._of_connections()
        yield GaugeMetricFamily("sandbox_draining", "1 when nothing new is admitted.", value=self._service.draining)
        build = GaugeMetricFamily("sandbox_build_info", "The version that runs.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build

    def _of_slots(self) -> Iterator[Metric]:
        busy = self._back.running
        free = 0 if self._service.draining else max(0, self._back.capacity - busy)
        yield GaugeMetricFamily("sandbox_slots_busy", "Executions that this process runs.", value=busy)
        yield GaugeMetricFamily("sandbox_slots_free", "How many more it would take; 0 as it drains.", value=free)

    def _of_connections(self) -> Iterator[Metric]:
        asked = CounterMetricFamily("sandbox_backend_round_trips", "How often it was asked.", labels=["connection"])
        failed = CounterMetricFamily("sandbox_backend_errors", "It was away, or refused.", labels=["connection"])
        for name, connection in self._connections.items():
            asked.add_metric([name], connection.asked)
            failed.add_metric([name], connection.failed)
        yield asked
        yield failed


class _Families:
    """A collector of what one scrape tells. Unlike the library's metrics it keeps nothing."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)

    def describe(self) -> tuple[Metric, ...]:
        return ()


def _of_queue(stats: QueueStats | None, now: datetime) -> Iterator[Metric]:
    yield GaugeMetricFamily("sandbox_queue_up", "1 when the queue answers.", value=stats is not None)
    if stats is None:
        return
    yield GaugeMetricFamily("sandbox_queue_depth", "Executions that wait in the queue.", value=stats.depth)
    oldest = stats.oldest_queued_at
    if oldest is not None or not stats.depth:
        # Clocks of processes may differ.
        age = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
        yield GaugeMetricFamily("sandbox_queue_oldest_age_seconds", "How long the oldest of them waits.", value=age)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _histogram(name: str, meaning: str, values: Histogram) -> Metric:
    return HistogramMetricFamily(name, meaning, buckets=list(values.cumulative()), sum_value=values.sum)
