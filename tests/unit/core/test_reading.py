"""Reading logs of many events and lists of large executions: each call takes a bounded part, and nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sandbox_adapters.clock import SystemClock
from sandbox_core.application.service import LARGEST_PAGE, LARGEST_READ_EVENTS, LISTED_AT_ONCE
from sandbox_core.domain.command import MAX_STDIN_BYTES, Command
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, NodeId
from sandbox_core.testing.samples import pending

from .conftest import House, OpenHouse

pytestmark = pytest.mark.anyio

EVENTS = 3 * LARGEST_READ_EVENTS
LARGEST = 8 << 20


async def tiny_events(home: House) -> ExecutionId:
    """Store a log of one byte an event, as a program makes that writes to its two streams in turn."""
    execution = await home.store.create(pending(SystemClock()))
    claim = await home.store.claim(execution.id, NodeId("elsewhere"), lease_seconds=1000)
    now = datetime.now(UTC)
    for start in range(0, EVENTS, 1000):
        drafts = [
            EventDraft(EventKind.STDERR if at % 2 else EventKind.STDOUT, now, b"x", {"offset": at})
            for at in range(start, start + 1000)
        ]
        await home.store.append(claim.lease, drafts)
    return execution.id


async def test_both_ends_of_a_log_of_tiny_events_are_few_events_and_tell_what_is_between(house: OpenHouse) -> None:
    async with house({}) as home:
        execution_id = await tiny_events(home)
        ends = await home.service.read_ends(LOCAL_PRINCIPAL, execution_id, max_bytes=LARGEST)
        assert len(ends.head) == len(ends.tail) == LARGEST_READ_EVENTS
        assert (ends.head[0].seq, ends.tail[-1].seq, ends.last_seq) == (1, EVENTS, EVENTS)
        assert ends.omitted_bytes == EVENTS - 2 * LARGEST_READ_EVENTS
        assert ends.resume_after == LARGEST_READ_EVENTS
        later = await home.service.read_ends(LOCAL_PRINCIPAL, execution_id, after=EVENTS - 20_000, max_bytes=LARGEST)
        assert (len(later.head), later.tail, later.omitted_bytes) == (20_000, (), 0)


async def test_the_newest_of_a_log_of_tiny_events_are_few_events(house: OpenHouse) -> None:
    async with house({}) as home:
        execution_id = await tiny_events(home)
        page = await home.service.read_tail(LOCAL_PRINCIPAL, execution_id, max_bytes=LARGEST)
        assert [event.seq for event in page.events] == list(range(EVENTS - LARGEST_READ_EVENTS + 1, EVENTS + 1))
        few = await home.service.read_tail(LOCAL_PRINCIPAL, execution_id, max_bytes=10)
        assert [event.seq for event in few.events] == list(range(EVENTS - 9, EVENTS + 1))


async def test_a_page_of_large_executions_ends_early_and_the_pages_together_have_each_once(house: OpenHouse) -> None:
    async with house({}) as home:
        large = Command(shell="cat", stdin=b"x" * MAX_STDIN_BYTES)
        made = [(await home.store.create(pending(SystemClock(), command=large))).id for _ in range(LISTED_AT_ONCE + 10)]
        made += [(await home.store.create(pending(SystemClock()))).id for _ in range(LISTED_AT_ONCE)]
        sizes, seen, before = list[int](), list[ExecutionId](), None
        while True:
            page = await home.service.list_page(LOCAL_PRINCIPAL, limit=LARGEST_PAGE, before=before)
            sizes.append(len(page.executions))
            seen += [execution.id for execution in page.executions]
            if (before := page.next_before) is None:
                break
    assert seen == sorted(made, reverse=True)
    assert sizes == [2 * LISTED_AT_ONCE, 10]


async def test_a_page_of_small_executions_is_as_long_as_was_asked(house: OpenHouse) -> None:
    async with house({}) as home:
        made = [(await home.store.create(pending(SystemClock()))).id for _ in range(LARGEST_PAGE + 1)]
        page = await home.service.list_page(LOCAL_PRINCIPAL, limit=LARGEST_PAGE - 1)
    newest = sorted(made, reverse=True)
    assert [execution.id for execution in page.executions] == newest[: LARGEST_PAGE - 1]
    assert page.next_before == newest[LARGEST_PAGE - 2]
