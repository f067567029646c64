"""OutputBuffer and the view of both ends: nothing is lost, doubled or split that need not be."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.application.log_view import cut_ends
from sandbox_core.application.output_log import LARGEST_TAIL_BYTES, MOST_IN_TAIL, SMALL_BYTES, OutputBuffer
from sandbox_core.domain.command import Command
from sandbox_core.domain.events import MAX_EVENT_BYTES, EventDraft, EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, new_execution_id
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.store import LogPage

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Pieces = list[tuple[EventKind, bytes]]
KINDS = st.sampled_from([EventKind.STDOUT, EventKind.STDERR])
PIECES = st.lists(st.tuples(KINDS, st.binary(min_size=1, max_size=60)), max_size=90)


def collect(pieces: Pieces, cap: int | None, take_every: int = 3) -> tuple[OutputBuffer, list[EventDraft]]:
    buffer = OutputBuffer(cap)
    drafts: list[EventDraft] = []
    for number, (kind, data) in enumerate(pieces):
        buffer.feed(kind, data, NOW)
        if number % take_every == 0:
            drafts += buffer.take()
    return buffer, drafts + buffer.finish(NOW)


def text_of(drafts: list[EventDraft], kind: EventKind) -> bytes:
    return b"".join(draft.data for draft in drafts if draft.kind is kind)


@given(PIECES, st.integers(1, 7))
def test_without_a_cap_every_byte_comes_out_in_order_per_stream(pieces: Pieces, take_every: int) -> None:
    _, drafts = collect(pieces, None, take_every)
    for kind in (EventKind.STDOUT, EventKind.STDERR):
        assert text_of(drafts, kind) == b"".join(data for one, data in pieces if one is kind)


@given(PIECES, st.integers(4, 400))
def test_with_a_cap_head_and_newest_bytes_are_kept_and_the_rest_is_counted(pieces: Pieces, cap: int) -> None:
    buffer, drafts = collect(pieces, cap)
    printed = sum(len(data) for _, data in pieces)
    kept = sum(len(draft.data) for draft in drafts if draft.kind.is_output)
    cuts = [draft for draft in drafts if draft.kind is EventKind.TRUNCATED]
    assert kept <= cap
    assert kept + buffer.dropped_bytes == printed == sum(buffer.printed_bytes.values())
    assert len(cuts) == (1 if buffer.dropped_bytes else 0)
    if printed <= cap - 6:
        assert not cuts
    for cut in cuts:
        assert cut.fields["dropped_bytes"] == buffer.dropped_bytes
        position = drafts.index(cut)
        for kind in (EventKind.STDOUT, EventKind.STDERR):
            whole = b"".join(data for one, data in pieces if one is kind)
            assert whole.startswith(text_of(drafts[:position], kind))
            assert whole.endswith(text_of(drafts[position:], kind))


@given(PIECES, st.none() | st.integers(4, 400))
def test_offsets_count_what_was_kept_and_dropped_before(pieces: Pieces, cap: int | None) -> None:
    _, drafts = collect(pieces, cap)
    position = 0
    for draft in drafts:
        if draft.kind.is_output:
            assert draft.fields["offset"] == position
            position += len(draft.data)
        else:
            dropped = draft.fields["dropped_bytes"]
            assert isinstance(dropped, int)
            position += dropped


@given(st.text(min_size=1, max_size=300), st.data())
def test_a_character_is_never_split_between_events_of_text(text: str, data: st.DataObject) -> None:
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]
    _, drafts = collect([(EventKind.STDOUT, piece) for piece in pieces], None, take_every=1)
    for draft in drafts:
        draft.data.decode()


@given(st.integers(8, 200))
def test_a_character_is_never_split_at_the_cap(cap: int | None) -> None:
    raw = "äöü€😀".encode() * 40
    _, drafts = collect([(EventKind.STDOUT, raw)], cap)
    for draft in drafts:
        draft.data.decode()


def test_small_reads_of_one_stream_become_one_event_and_large_ones_are_cut() -> None:
    buffer = OutputBuffer(None)
    for _ in range(100):
        buffer.feed(EventKind.STDOUT, b"x" * 10, NOW)
    assert [len(draft.data) for draft in buffer.take()] == [1000]
    buffer.feed(EventKind.STDOUT, b"y" * (3 * MAX_EVENT_BYTES + 1), NOW)
    assert [len(draft.data) for draft in buffer.take()] == [MAX_EVENT_BYTES] * 3 + [1]


def test_memory_past_the_cap_is_the_tail_only() -> None:
    buffer = OutputBuffer(4 << 20)
    for _ in range(400):
        buffer.feed(EventKind.STDOUT, b"z" * 65536, NOW)
        buffer.take()
    assert buffer.waiting_bytes == 0
    assert sum(len(draft.data) for draft in buffer.finish(NOW) if draft.kind.is_output) <= LARGEST_TAIL_BYTES


@pytest.mark.parametrize("cap", [None, 4 << 20], ids=["all kept", "in the tail"])
def test_single_bytes_of_two_streams_in_turns_are_a_bounded_number_of_events(cap: int | None) -> None:
    buffer = OutputBuffer(cap)
    if cap is not None:
        buffer.feed(EventKind.STDOUT, b"z" * cap, NOW)
        buffer.take()
    turns = LARGEST_TAIL_BYTES // 2
    for number in range(turns):
        buffer.feed(EventKind.STDOUT, bytes([number % 128]), NOW)
        buffer.feed(EventKind.STDERR, b"e", NOW)
    drafts = [draft for draft in buffer.finish(NOW) if draft.kind.is_output]
    assert len(drafts) <= MOST_IN_TAIL + 2 * LARGEST_TAIL_BYTES // SMALL_BYTES
    assert text_of(drafts, EventKind.STDOUT) == bytes(number % 128 for number in range(turns))
    assert text_of(drafts, EventKind.STDERR) == b"e" * turns


def log_of(pieces: Pieces) -> tuple[OutputEvent, ...]:
    _, drafts = collect(pieces, None)
    events = [OutputEvent(1, EventKind.READY, NOW, b"ready")]
    events += [OutputEvent(n, d.kind, d.at, d.data, d.fields) for n, d in enumerate(drafts, start=2)]
    events.append(OutputEvent(len(events) + 1, EventKind.EXIT, NOW, b"bye"))
    return tuple(events)


EXECUTION = Execution(
    id=new_execution_id(NOW),
    principal=LOCAL_PRINCIPAL,
    session_id=None,
    command=Command(shell="x"),
    policy=ExecutionPolicy(),
    created_at=NOW,
)


@given(PIECES, st.integers(2, 300))
def test_both_ends_show_at_most_the_budget_and_say_exactly_what_is_left_out(pieces: Pieces, budget: int) -> None:
    events = log_of(pieces)
    whole = b"".join(event.data for event in events if event.kind.is_output)

    def page(source: tuple[OutputEvent, ...], reverse: bool = False) -> LogPage:
        kept: list[OutputEvent] = []
        size = 0
        for event in reversed(source) if reverse else source:
            if kept and size + len(event.data) > budget + 200:
                break
            kept.append(event)
            size += len(event.data)
        return LogPage(EXECUTION, tuple(reversed(kept) if reverse else kept), events[-1].seq)

    first = page(events)
    newest = None if first.events[-1].seq == events[-1].seq else page(events, reverse=True)
    view = cut_ends(first, newest, budget)
    head = b"".join(event.data for event in view.head if event.kind.is_output)
    tail = b"".join(event.data for event in view.tail if event.kind.is_output)
    if len(whole) <= budget:
        assert (head, view.tail, view.omitted_bytes) == (whole, (), 0)
        return
    assert len(head) + len(tail) <= budget
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + view.omitted_bytes + len(tail) == len(whole)
    assert view.tail[-1].kind is EventKind.EXIT
    assert view.resume_after is not None
    rest = b"".join(event.data for event in events if event.kind.is_output and event.seq > view.resume_after)
    assert rest[view.resume_skip :] == whole[len(head) :]
