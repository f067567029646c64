"""What the counters count, and what a scrape tells of it: right, bounded, and nobody's name in it."""

from __future__ import annotations

import subprocess  # noqa: TID251  # a clean interpreter is a new process
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import prometheus_client
import pytest

from sandbox_adapters.container import SandboxContainer
from sandbox_adapters.metrics.counts import Counts, Histogram
from sandbox_adapters.metrics.exposition import FRESH_SECONDS, Metrics
from sandbox_adapters.metrics.store import CountingStateStore
from sandbox_adapters.queues.local import LocalQueue
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.domain.errors import LeaseLost, StoreUnavailable
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.queue import QueueStats
from sandbox_core.ports.store import StateStore
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.samples import NODE, OTHER_NODE, ended, exited, pending, printed
from sandbox_core.testing.scripted_runner import Pause, Print, Script, ScriptedRunner
from tests.scrapes import Scrape, read_scrape

pytestmark = pytest.mark.anyio
_SECRET = "s3cret-of-nobody"
_BOUND_SECONDS = 30


def satisfies_the_port(store: CountingStateStore) -> StateStore:
    """Checked by mypy."""
    return store


@asynccontextmanager
async def metered(
    scripts: Mapping[str, Script], clock: FakeClock | None = None, **fields: object
) -> AsyncIterator[Sandbox]:
    settings = Settings.model_validate({"metrics": "open", **fields})
    async with open_sandbox(settings, runner=ScriptedRunner(scripts, clock=clock), clock=clock) as sandbox:
        yield sandbox


def metrics_of(sandbox: Sandbox) -> Metrics:
    assert sandbox.metrics is not None
    return sandbox.metrics


async def scrape(sandbox: Sandbox, accept: str = "") -> Scrape:
    text, content_type = await metrics_of(sandbox).render(accept)
    return read_scrape(text.decode(), content_type)


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_a_known_workload_is_counted(accept: str) -> None:
    scripts = {
        "good": Script(stdout=b"x" * 100, stderr=b"y" * 10),
        "bad": Script(exit_code=3),
        "hit": Script(signal_number=9),
    }
    async with metered(scripts) as sandbox:
        for command, times in (("good", 3), ("bad", 2), ("hit", 1)):
            for _ in range(times):
                await sandbox.run(command)
        told = await scrape(sandbox, accept)
    ended_by = {reason: told.value("sandbox_executions_total", reason=reason) for reason in TerminationReason}
    assert {reason: count for reason, count in ended_by.items() if count} == {"exited": 5, "signaled": 1}
    assert told.value("sandbox_output_bytes_total", stream="stdout") == 300
    assert told.value("sandbox_output_bytes_total", stream="stderr") == 30
    assert told.value("sandbox_time_in_queue_seconds_count") == 6
    assert told.value("sandbox_start_seconds_count") == 6
    assert told.value("sandbox_queue_up") == 1
    assert told.value("sandbox_queue_depth") == told.value("sandbox_queue_oldest_age_seconds") == 0
    assert (told.value("sandbox_slots_busy"), told.value("sandbox_slots_free")) == (0, 10)
    assert told.value("sandbox_leases_lost_total") == told.value("sandbox_draining") == 0


async def test_what_waits_and_what_runs_is_told(fake_clock: FakeClock) -> None:
    scripts = {"long": Script(steps=[Pause(600)])}
    async with metered(scripts, fake_clock, max_concurrent=1) as sandbox:
        await sandbox.submit("long")
        with anyio.fail_after(_BOUND_SECONDS):
            while not sandbox.supervisor.running:
                await anyio.lowlevel.checkpoint()
        await fake_clock.advance(10)
        waiting = [await sandbox.submit("long") for _ in range(2)]
        await fake_clock.advance(5)
        told = await scrape(sandbox)
        assert (told.value("sandbox_slots_busy"), told.value("sandbox_slots_free")) == (1, 0)
        assert told.value("sandbox_queue_depth") == 2
        assert told.value("sandbox_queue_oldest_age_seconds") == 5
        await sandbox.cancel(waiting[0])
        await fake_clock.advance(FRESH_SECONDS)
        told = await scrape(sandbox)
        assert told.value("sandbox_queue_depth") == 1
        assert told.value("sandbox_executions_total", reason="cancelled") == 1


async def test_a_draining_process_has_no_free_slot() -> None:
    async with metered({}) as sandbox:
        sandbox.service.drain()
        told = await scrape(sandbox)
    assert (told.value("sandbox_draining"), told.value("sandbox_slots_free")) == (1, 0)


async def test_no_caller_puts_anything_of_its_own_into_the_text() -> None:
    scripts = {f"echo {_SECRET}": Script(steps=[Print(_SECRET.encode())])}
    async with metered(scripts, auth_token=_SECRET) as sandbox:
        before = (await scrape(sandbox)).samples.keys()
        for number in range(20):
            await sandbox.run(f"echo {_SECRET}", session_id=f"{_SECRET}-{number}", environment={"KEY": _SECRET})
        text, _ = await metrics_of(sandbox).render()
        told = read_scrape(text.decode())
    assert told.samples.keys() == before
    assert _SECRET not in text.decode()
    assert {name for name, _ in told.labels()} == {"reason", "stream", "le", "version"}


async def test_the_registry_has_nothing_of_others_and_others_have_nothing_of_it() -> None:
    async with metered({"true": Script()}) as one, metered({"true": Script()}) as two:
        await one.run("true")
        first, second = await scrape(one), await scrape(two)
    assert all(name.startswith("sandbox_") for name in first.names())
    assert not [name for name in first.names() if name.endswith("_created")]
    assert first.value("sandbox_executions_total", reason="exited") == 1
    assert second.value("sandbox_executions_total", reason="exited") == 0
    assert "sandbox_" not in prometheus_client.generate_latest().decode()


class _Queue(LocalQueue):
    """Answers as a test says, and counts the questions."""

    answer: QueueStats | None = None
    asked = 0

    async def stats(self) -> QueueStats:
        self.asked += 1
        if self.answer is None:
            raise StoreUnavailable("it is away")
        return self.answer


def _over(queue: LocalQueue, clock: FakeClock) -> Metrics:
    container = SandboxContainer(settings=Settings(metrics="open"))
    container.runner.override(ScriptedRunner())
    container.clock.override(clock)
    container.queue.override(queue)
    made = container.metrics()
    assert isinstance(made, Metrics)
    return made


async def test_many_scrapes_ask_the_queue_once_in_a_while(fake_clock: FakeClock) -> None:
    queue = _Queue()
    queue.answer = QueueStats(1, fake_clock.now())
    metrics = _over(queue, fake_clock)
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(metrics.render)
    assert queue.asked == 1
    await fake_clock.advance(FRESH_SECONDS)
    await metrics.render()
    assert queue.asked == 2


async def test_a_queue_that_is_away_or_cannot_tell_the_age_is_said_so(fake_clock: FakeClock) -> None:
    queue = _Queue()
    metrics = _over(queue, fake_clock)
    away = read_scrape((await metrics.render())[0].decode())
    assert away.value("sandbox_queue_up") == 0
    assert not away.names() & {"sandbox_queue_depth", "sandbox_queue_oldest_age_seconds"}
    queue.answer = QueueStats(3)
    await fake_clock.advance(FRESH_SECONDS)
    ageless = read_scrape((await metrics.render())[0].decode())
    assert (ageless.value("sandbox_queue_up"), ageless.value("sandbox_queue_depth")) == (1, 3)
    assert "sandbox_queue_oldest_age_seconds" not in ageless.names()


async def test_a_write_that_another_node_fenced_off_counts_as_a_lost_lease_and_as_nothing_else(
    fake_clock: FakeClock,
) -> None:
    counts = Counts()
    store = CountingStateStore(MemoryStateStore(fake_clock), counts)
    execution = await store.create(pending(fake_clock))
    await fake_clock.advance(2)
    claim = await store.claim(execution.id, NODE, lease_seconds=1)
    await fake_clock.advance(3)
    seized = await store.seize(execution.id, OTHER_NODE, lease_seconds=1)
    with pytest.raises(LeaseLost):
        await store.append(claim.lease, [printed(fake_clock, b"late"), exited(fake_clock)])
    assert (counts.leases_lost, sum(counts.ended.values()), sum(counts.output_bytes.values())) == (1, 0, 0)
    assert counts.time_in_queue.sum == 2
    await store.append(seized.lease, [exited(fake_clock)], ended(seized.execution, fake_clock))
    assert sum(counts.ended.values()) == counts.ended[TerminationReason.EXITED] == 1


async def test_what_is_lost_and_runs_again_counts_as_a_retry_and_ends_once(fake_clock: FakeClock) -> None:
    counts = Counts()
    store = CountingStateStore(MemoryStateStore(fake_clock), counts)
    execution = await store.create(replace(pending(fake_clock), retry_safe=True))
    claim = await store.claim(execution.id, NODE, lease_seconds=1)
    await fake_clock.advance(600)
    await store.append(claim.lease, [], claim.execution.apply(claim.execution.requeue(fake_clock.now())))
    await fake_clock.advance(2)
    claim = await store.claim(execution.id, OTHER_NODE, lease_seconds=1)
    await store.append(claim.lease, [exited(fake_clock)], ended(claim.execution, fake_clock))
    assert (counts.retries, sum(counts.ended.values()), counts.time_in_queue.sum) == (1, 1, 2)


def test_the_counting_store_has_every_method_of_the_port() -> None:
    port = {name for name in vars(StateStore) if not name.startswith("_")}
    assert port <= set(dir(CountingStateStore(MemoryStateStore(FakeClock()), Counts())))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], [0, 0, 0]), ([1.0, 0.5, 2.0, 2.1], [2, 3, 4]), ([-5.0], [1, 1, 1])],
)
def test_a_histogram_is_cumulative_and_its_bounds_belong_to_it(values: Sequence[float], expected: list[int]) -> None:
    histogram = Histogram((1.0, 2.0))
    for value in values:
        histogram.observe(value)
    assert list(histogram.cumulative()) == list(zip(("1.0", "2.0", "+Inf"), expected, strict=True))
    assert histogram.sum == sum(max(0.0, value) for value in values)


def test_without_metrics_nothing_is_counted_and_the_library_is_not_loaded() -> None:
    container = SandboxContainer(settings=Settings())
    assert container.metrics() is None
    assert container.counted_store() is container.store()
    program = "import sys, sandbox_mcp.serve, sandbox_mcp.worker; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
