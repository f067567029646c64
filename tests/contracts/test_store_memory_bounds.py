"""MemoryStateStore stays bounded: logs go to disk, space is used again, the oldest finished go first."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.stores.deadlines import Deadlines
from sandbox_adapters.stores.log import EventLog, MemoryBudget
from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_adapters.stores.spill import BLOCK_BYTES, SpillFile
from sandbox_core.domain.errors import ExecutionNotFound, StoreUnavailable
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, Principal
from sandbox_core.ports.store import ListQuery
from sandbox_core.testing.fake_clock import FakeClock
from sandbox_core.testing.samples import NODE, cancelled, ended, exited, pending, printed

_KIB, _MIB = 1024, 1 << 20


@pytest.fixture
async def store(anyio_backend: str, fake_clock: FakeClock) -> AsyncIterator[MemoryStateStore]:
    async with MemoryStateStore(fake_clock, max_retained=5, max_retained_mb=8) as store:
        yield store


async def finished(
    store: MemoryStateStore, clock: FakeClock, size: int = 0, principal: Principal = LOCAL_PRINCIPAL
) -> ExecutionId:
    """Store a finished execution that printed `size` bytes."""
    execution = await store.create(pending(clock, principal=principal))
    claim = await store.claim(execution.id, NODE, lease_seconds=15)
    for start in range(0, size, 64 * _KIB):
        await store.append(claim.lease, [printed(clock, b"x" * min(64 * _KIB, size - start))])
    await store.append(claim.lease, [exited(clock)], ended(claim.execution, clock))
    return execution.id


async def found(store: MemoryStateStore, principal: Principal = LOCAL_PRINCIPAL) -> set[ExecutionId]:
    return {execution.id for execution in (await store.list_page(ListQuery(principal))).executions}


@pytest.mark.anyio
class TestRetention:
    async def test_past_the_count_the_oldest_finished_go(self, store: MemoryStateStore, fake_clock: FakeClock) -> None:
        ids = [await finished(store, fake_clock) for _ in range(5)]
        await store.load(ids[0])
        newest = [await finished(store, fake_clock) for _ in range(2)]
        assert await found(store) == {ids[0], *ids[3:], *newest}
        with pytest.raises(ExecutionNotFound):
            await store.read(ids[1])

    async def test_past_the_bytes_the_oldest_finished_go(self, store: MemoryStateStore, fake_clock: FakeClock) -> None:
        ids = [await finished(store, fake_clock, 3 * _MIB) for _ in range(3)]
        assert await found(store) == set(ids[1:])

    @pytest.mark.parametrize(("size", "count"), [(0, 12), (3 * _MIB, 4)], ids=["count", "bytes"])
    async def test_who_keeps_most_makes_room_and_not_the_others(
        self, store: MemoryStateStore, fake_clock: FakeClock, size: int, count: int
    ) -> None:
        modest = Principal("modest")
        theirs = {await finished(store, fake_clock, 1000, modest) for _ in range(2)}
        flood = [await finished(store, fake_clock, size) for _ in range(count)]
        assert await found(store, modest) == theirs
        kept = await found(store)
        assert kept == set(flood[-len(kept) :])
        late = await finished(store, fake_clock, 1000, modest)
        assert await found(store, modest) == {*theirs, late}

    async def test_pending_and_running_ones_stay(self, store: MemoryStateStore, fake_clock: FakeClock) -> None:
        waiting = [await store.create(pending(fake_clock)) for _ in range(8)]
        for execution in waiting[:4]:
            await store.claim(execution.id, NODE, lease_seconds=15)
        gone, kept = await finished(store, fake_clock), await finished(store, fake_clock)
        assert await found(store) == {*(execution.id for execution in waiting), kept}
        assert gone != kept

    async def test_the_newest_finished_stays_whatever_its_size(
        self, store: MemoryStateStore, fake_clock: FakeClock
    ) -> None:
        execution_id = await finished(store, fake_clock, 9 * _MIB)
        assert (await store.read_last(execution_id)).last_seq == 9 * 16 + 1

    async def test_nothing_is_left_of_what_went(self, fake_clock: FakeClock) -> None:
        async with MemoryStateStore(fake_clock) as store:
            for number in range(20):
                execution = await store.create(pending(fake_clock), idempotency_key=str(number))
                await store.finish_unclaimed(cancelled(execution, fake_clock), [printed(fake_clock, b"x" * _MIB)])
                await finished(store, fake_clock, _MIB)
            assert store._spill.size_bytes >= 20 * _MIB
            await fake_clock.advance(3600)
            assert await found(store) == set()
            assert (store._bytes, store._budget.used_bytes, store._spill.size_bytes) == (0, 0, 0)
            assert (store._records, store._keys, store._listing._ids) == ({}, {}, {})
            assert (len(store._pending), len(store._finished), len(store._leases)) == (0, 0, 0)


@pytest.mark.anyio
class TestSpilling:
    async def test_printing_much_fills_the_disk_and_not_the_memory(self, fake_clock: FakeClock) -> None:
        async with MemoryStateStore(fake_clock) as store:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            execution_id = await finished(store, fake_clock, 64 * _MIB)
            taken = after = 0
            while (page := await store.read(execution_id, after=after, max_bytes=_MIB)).events:
                after = page.events[-1].seq
                taken += sum(len(event.data) for event in page.events)
            assert taken == 64 * _MIB + len(b"exited with code 0")
            grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown_kib < 24 * _KIB

    async def test_the_end_of_a_long_log_is_read_without_the_rest(
        self, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with MemoryStateStore(fake_clock) as store:
            execution = await store.create(pending(fake_clock))
            claim = await store.claim(execution.id, NODE, lease_seconds=15)
            for start in range(0, 50_000, 1000):
                drafts = [printed(fake_clock, b"line %d\n" % number) for number in range(start, start + 1000)]
                await store.append(claim.lease, drafts)
            read: list[int] = []
            original = store._spill.read

            def counted(block: int, offset: int, size: int) -> bytes:
                read.append(size)
                return original(block, offset, size)

            monkeypatch.setattr(store._spill, "read", counted)
            assert [event.seq for event in (await store.read(execution.id, after=49_990)).events][-1] == 50_000
            assert len((await store.read_last(execution.id, max_bytes=100)).events) == 9
            assert 0 < sum(read) < 64 * _KIB

    async def test_many_spilled_logs_share_one_descriptor(self, fake_clock: FakeClock) -> None:
        async with MemoryStateStore(fake_clock, memory_per_log_bytes=0) as store:
            await finished(store, fake_clock, 1)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(50):
                await finished(store, fake_clock, 1)
            assert len(os.listdir("/proc/self/fd")) == before

    async def test_all_logs_together_keep_to_the_memory_they_may_have(self, fake_clock: FakeClock) -> None:
        async with MemoryStateStore(fake_clock, memory_mb=1) as store:
            for _ in range(16):
                await finished(store, fake_clock, 192 * _KIB)
            assert store._budget.used_bytes <= _MIB
            assert store._spill.size_bytes >= 2 * _MIB

    async def test_the_file_has_no_name_and_goes_with_the_store(self, tmp_path: Path, fake_clock: FakeClock) -> None:
        store = MemoryStateStore(fake_clock, memory_per_log_bytes=0, spill_directory=str(tmp_path))
        await finished(store, fake_clock, 100)
        assert os.listdir(tmp_path) == []
        descriptor = store._spill._fileno()
        del store
        gc.collect()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(descriptor)

    async def test_a_disk_that_refuses_leaves_the_log_as_it_was(self, tmp_path: Path, fake_clock: FakeClock) -> None:
        store = MemoryStateStore(fake_clock, memory_per_log_bytes=1000, spill_directory=str(tmp_path / "missing"))
        execution = await store.create(pending(fake_clock))
        claim = await store.claim(execution.id, NODE, lease_seconds=15)
        await store.append(claim.lease, [printed(fake_clock, b"kept")])
        with pytest.raises(StoreUnavailable):
            await store.append(claim.lease, [printed(fake_clock, b"x" * 2000)], ended(claim.execution, fake_clock))
        page = await store.read(execution.id)
        assert [event.data for event in page.events] == [b"kept"]
        assert page.execution == claim.execution
        os.mkdir(tmp_path / "missing")
        assert await store.append(claim.lease, [printed(fake_clock, b"x" * 2000)]) == 2


class TestEventLog:
    @given(
        batches=st.lists(
            st.lists(st.integers(0, 3000) | st.sampled_from([8192, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]),
                     min_size=1, max_size=4),
            max_size=12,
        ),
        memory=st.sampled_from([0, 500, 4000, 1 << 30]),
        start=st.integers(1, 30),
    )  # fmt: skip
    def test_lines_come_back_from_memory_and_disk_in_both_directions(
        self, batches: list[list[int]], memory: int, start: int
    ) -> None:
        spill = SpillFile()
        expected: list[bytes] = []
        log, other = (EventLog(spill, MemoryBudget(1 << 40), memory) for _ in range(2))
        for batch in batches:
            lines = [bytes([65 + (len(expected) + index) % 26]) * size for index, size in enumerate(batch)]
            log.append(lines)
            other.append([b"other" * 50])
            expected += lines
        assert len(log) == len(expected)
        assert list(log.forward(start)) == expected[start - 1 :]
        assert list(log.backward(start)) == expected[start:][::-1]
        assert list(other.forward(1)) == [b"other" * 50] * len(batches)
        log.drop()
        assert (list(log.forward(1)), list(log.backward(0)), len(log)) == ([], [], 0)
        other.drop()
        assert spill.size_bytes == 0
        spill.close()

    def test_freed_blocks_are_used_again(self) -> None:
        spill, budget = SpillFile(), MemoryBudget(0)
        keeper, size = EventLog(spill, budget, 0), 0
        for _ in range(20):
            log = EventLog(spill, budget, 0)
            log.append([b"x" * (3 * BLOCK_BYTES)])
            keeper.append([b"kept"])
            size = max(size, spill.size_bytes)
            log.drop()
        assert size <= 5 * BLOCK_BYTES
        assert list(keeper.forward(1)) == [b"kept"] * 20
        spill.close()


class TestDeadlines:
    @given(
        moves=st.lists(
            st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 20), st.integers(0, 20)), max_size=60
        )
    )
    def test_what_is_due_is_what_a_scan_finds(self, moves: list[tuple[str, int | None, int]]) -> None:
        deadlines: Deadlines[str] = Deadlines()
        model: dict[str, int] = {}
        for key, deadline, now in moves:
            if deadline is None:
                deadlines.discard(key)
                model.pop(key, None)
            else:
                deadlines.set(key, deadline)
                model[key] = deadline
            expected = sorted((at, name) for name, at in model.items() if at <= now)
            assert deadlines.due(now) == [name for _, name in expected]
            assert deadlines.due(now, 2) == [name for _, name in expected[:2]]

    def test_the_heap_does_not_grow_with_every_change(self) -> None:
        deadlines: Deadlines[str] = Deadlines()
        for number in range(10_000):
            deadlines.set(str(number), 1e9)
            deadlines.discard(str(number))
        assert len(deadlines._heap) < 200
