"""StateStore contract: appending to output logs and reading them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone

import pytest

from sandbox_core.domain.errors import ExecutionNotFound, IllegalTransition, InvalidArgument, LeaseLost
from sandbox_core.domain.events import MAX_EVENT_BYTES, EventDraft, EventKind, FieldValue, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Claim, LogPage
from sandbox_core.testing.samples import NODE, ended, exited, pending, printed
from sandbox_core.testing.store_harness import StoreHarness


@pytest.mark.anyio
class LogContract:
    """Events are numbered by the store, all or nothing, and read from anywhere."""

    async def test_events_are_numbered_without_holes(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        first = [printed(harness.clock, b"a"), printed(harness.clock, b"b")]
        assert await harness.store.append(claim.lease, first) == 2
        assert await harness.store.append(claim.lease, [printed(harness.clock, b"c")]) == 3
        page = await harness.store.read(claim.lease.execution_id)
        assert [(event.seq, event.data) for event in page.events] == [(1, b"a"), (2, b"b"), (3, b"c")]
        assert page.last_seq == 3

    async def test_an_event_is_read_as_it_was_written(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        fields: dict[str, FieldValue] = {
            "text": "ż\n",
            "count": 1 << 40,
            "share": 0.1,
            "yes": True,
            "no": False,
            "none": None,
            "": "empty",
        }
        drafts = [
            *(EventDraft(kind, harness.clock.now(), kind.encode(), {"kind": kind.value}) for kind in EventKind),
            EventDraft(EventKind.STDOUT, harness.clock.now(), bytes(range(256))),
            EventDraft(EventKind.STDERR, harness.clock.now() + timedelta(microseconds=1), "żółć \U0001f600".encode()),
            EventDraft(EventKind.STDOUT, harness.clock.now(), b"", fields),
            EventDraft(EventKind.STDOUT, harness.clock.now(), b"x" * MAX_EVENT_BYTES),
            EventDraft(EventKind.STDOUT, harness.clock.now(), b"\xff" * MAX_EVENT_BYTES),
            EventDraft(EventKind.STDOUT, harness.clock.now(), b"\0" * MAX_EVENT_BYTES),
        ]
        await harness.store.append(claim.lease, drafts)
        expected = [OutputEvent(seq, d.kind, d.at, d.data, d.fields) for seq, d in enumerate(drafts, 1)]
        assert list((await harness.store.read(claim.lease.execution_id)).events) == expected
        last = await harness.store.read_last(claim.lease.execution_id, max_bytes=1 << 20)
        assert list(last.events) == expected

    async def test_a_time_in_another_zone_is_the_same_instant_in_utc(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        there = harness.clock.now().astimezone(timezone(timedelta(hours=5)))
        await harness.store.append(claim.lease, [EventDraft(EventKind.STDOUT, there)])
        (event,) = (await harness.store.read(claim.lease.execution_id)).events
        assert event.at == there
        assert event.at.utcoffset() == timedelta(0)

    async def test_appending_nothing_returns_the_newest_number(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        assert await harness.store.append(claim.lease, []) == 0
        await harness.store.append(claim.lease, [printed(harness.clock, b"a")])
        assert await harness.store.append(claim.lease, []) == 1

    async def test_events_and_state_are_of_the_same_instant(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        final = ended(claim.execution, harness.clock)
        await harness.store.append(claim.lease, [exited(harness.clock)], final)
        for page in (
            await harness.store.read(final.id),
            await harness.store.read(final.id, after=1),
            await harness.store.read_last(final.id),
        ):
            assert page.execution == final
            assert page.last_seq == 1

    async def test_a_state_without_a_change_of_status_is_stored(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        ready = claim.execution.apply(claim.execution.prepare(Isolation("r", "1", True)))
        await harness.store.append(claim.lease, [], ready)
        assert await harness.store.load(ready.id) == ready

    async def test_nothing_is_written_after_the_end(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        final = ended(claim.execution, harness.clock)
        await harness.store.append(claim.lease, [exited(harness.clock)], final)
        for execution in (None, final):
            with pytest.raises(LeaseLost):
                await harness.store.append(claim.lease, [printed(harness.clock, b"late")], execution)
        assert (await harness.store.read(final.id)).last_seq == 1

    async def test_a_wrong_token_writes_nothing(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        forged = replace(claim.lease, token=claim.lease.token + 1)
        with pytest.raises(LeaseLost):
            await harness.store.append(forged, [exited(harness.clock)], ended(claim.execution, harness.clock))
        page = await harness.store.read(claim.lease.execution_id)
        assert (page.execution, page.last_seq) == (claim.execution, 0)

    async def test_an_unknown_execution_has_no_lease(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        with pytest.raises(LeaseLost):
            await harness.store.append(replace(claim.lease, execution_id=pending(harness.clock).id), [])

    async def test_an_impossible_state_writes_neither_it_nor_the_events(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        back = replace(claim.execution, status=ExecutionStatus.PENDING)
        with pytest.raises(IllegalTransition):
            await harness.store.append(claim.lease, [printed(harness.clock, b"a")], back)
        with pytest.raises(InvalidArgument):
            await harness.store.append(claim.lease, [printed(harness.clock, b"a")], pending(harness.clock))
        page = await harness.store.read(claim.lease.execution_id)
        assert (page.execution, page.last_seq) == (claim.execution, 0)

    async def test_what_cannot_be_stored_leaves_the_log_as_it_was(self, harness: StoreHarness) -> None:
        claim = await _claimed(harness)
        drafts = [printed(harness.clock, b"a"), printed(harness.clock, b"b", half="\ud800")]
        with pytest.raises(InvalidArgument):
            await harness.store.append(claim.lease, drafts, ended(claim.execution, harness.clock))
        page = await harness.store.read(claim.lease.execution_id)
        assert (page.execution, page.last_seq) == (claim.execution, 0)

    async def test_two_logs_are_apart(self, harness: StoreHarness) -> None:
        claims = [await _claimed(harness) for _ in range(2)]
        for number in range(20):
            for which, claim in enumerate(claims):
                await harness.store.append(claim.lease, [printed(harness.clock, b"%d:%d" % (which, number))])
        for which, claim in enumerate(claims):
            page = await harness.store.read(claim.lease.execution_id)
            assert [event.data for event in page.events] == [b"%d:%d" % (which, number) for number in range(20)]

    async def test_reading_an_empty_log_gives_no_events(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        for page in (await harness.store.read(execution.id), await harness.store.read_last(execution.id)):
            assert page == LogPage(execution, (), 0)

    @pytest.mark.parametrize("after", [0, 1, 4, 5, 6, 1 << 60, -1])
    async def test_reading_starts_after_a_number(self, harness: StoreHarness, after: int) -> None:
        execution = await _logged(harness, [b"%d" % number for number in range(1, 6)])
        expected = [number for number in range(1, 6) if number > after]
        page = await harness.store.read(execution.id, after=after)
        last = await harness.store.read_last(execution.id, after=after)
        assert [event.seq for event in page.events] == expected
        assert [event.seq for event in last.events] == expected
        assert page.last_seq == last.last_seq == 5

    async def test_a_page_holds_at_most_so_many_events(self, harness: StoreHarness) -> None:
        execution = await _logged(harness, [b"%d" % number for number in range(1, 6)])
        page = await harness.store.read(execution.id, after=1, max_events=2)
        assert [event.seq for event in page.events] == [2, 3]
        assert page.last_seq == 5

    @pytest.mark.parametrize(
        ("max_bytes", "first", "last"),
        [(0, [1], [4]), (9, [1], [4]), (10, [1], [4]), (29, [1], [4]), (30, [1, 2], [3, 4]), (60, [1, 2, 3], [3, 4])],
    )
    async def test_a_page_holds_at_most_so_many_bytes_but_one_event(
        self, harness: StoreHarness, max_bytes: int, first: list[int], last: list[int]
    ) -> None:
        execution = await _logged(harness, [b"\xff" * 10, b"b" * 20, b"c" * 30, b""])
        page = await harness.store.read(execution.id, max_bytes=max_bytes)
        newest = await harness.store.read_last(execution.id, max_bytes=max_bytes)
        if max_bytes == 60:
            first, last = [1, 2, 3, 4], [1, 2, 3, 4]
        assert [event.seq for event in page.events] == first
        assert [event.seq for event in newest.events] == last

    async def test_a_long_log_reads_the_same_from_anywhere(self, harness: StoreHarness) -> None:
        """A megabyte and a half in pieces of every size, longer than what a store may keep at hand."""
        pieces = [bytes([65 + number % 26]) * (number * 997 % 30_000) for number in range(100)]
        claim = await _claimed(harness)
        for start in range(0, len(pieces), 7):
            await harness.store.append(
                claim.lease, [printed(harness.clock, piece) for piece in pieces[start : start + 7]]
            )
        execution_id = claim.lease.execution_id
        for after in (0, 1, 13, 14, 15, 50, 98, 99, 100):
            page = await harness.store.read(execution_id, after=after, max_bytes=1 << 22)
            assert [event.data for event in page.events] == pieces[after:]
            assert [event.seq for event in page.events] == list(range(after + 1, 101))
            last = await harness.store.read_last(execution_id, after=after, max_bytes=1 << 22)
            assert last == page

    async def test_a_log_is_read_whole_in_pages(self, harness: StoreHarness) -> None:
        pieces = [b"%d\n" % number * 50 for number in range(1000)]
        execution = await _logged(harness, pieces)
        found: list[bytes] = []
        while True:
            page = await harness.store.read(execution.id, after=len(found), max_bytes=5000)
            if not page.events:
                break
            found += [event.data for event in page.events]
        assert found == pieces

    async def test_a_log_that_has_gone_is_not_found(self, harness: StoreHarness) -> None:
        execution = await harness.store.create(pending(harness.clock))
        await harness.store.discard(execution.id)
        with pytest.raises(ExecutionNotFound):
            await harness.store.read(execution.id)


async def _claimed(harness: StoreHarness) -> Claim:
    execution = await harness.store.create(pending(harness.clock))
    return await harness.store.claim(execution.id, NODE, lease_seconds=15)


async def _logged(harness: StoreHarness, pieces: list[bytes]) -> Execution:
    claim = await _claimed(harness)
    await harness.store.append(claim.lease, [printed(harness.clock, piece) for piece in pieces])
    return claim.execution
