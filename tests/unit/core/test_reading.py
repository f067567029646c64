"""Reading logs of very many events: what one call takes is bounded in events, and nothing is lost between its ends."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sandbox_adapters.clock import SystemClock
from sandbox_core.application.service import LARGEST_READ_EVENTS
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
