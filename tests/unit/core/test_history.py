"""The checker of histories passes what is right and names each thing that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandbox_adapters.stores.memory import MemoryStateStore
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.testing import FakeClock
from sandbox_core.testing.history import History, history_of, judge
from sandbox_core.testing.samples import ended, exited, pending, printed

WHOLE = ((1, EventKind.READY), (2, EventKind.STDOUT), (3, EventKind.EXIT))
GOOD = History("a", ExecutionStatus.COMPLETED, "exited", WHOLE)
LOST = History("b", ExecutionStatus.FAILED, "lost", ((1, EventKind.READY), (2, EventKind.ERROR)))


def test_what_is_right_passes_and_is_counted() -> None:
    verdict = judge(["a", "b"], [GOOD, LOST], starts={"a": 1})
    assert verdict.faults == ()
    assert (verdict.submitted, verdict.events, verdict.started) == (2, 5, 1)
    assert verdict.ended == {"exited": 1, "lost": 1}


@pytest.mark.parametrize(
    ("submitted", "histories", "starts", "said"),
    [
        (["a", "b"], [GOOD], {"a": 1}, "b: it was accepted and is forgotten"),
        (["a"], [GOOD, LOST], {"a": 1}, "b: it is stored and nobody submitted it"),
        (["a", "a"], [GOOD], {"a": 1}, "a: its id was given 2 times"),
        (["a"], [GOOD, GOOD], {"a": 1}, "a: it is stored twice"),
        (["a"], [GOOD], {"a": 2}, "a: its program began 2 times"),
        (["a"], [GOOD], {}, "a: it completed and its program never began"),
        (["a"], [GOOD], {"a": 1, "c": 1}, "c: a program began that nobody submitted"),
        (["a"], [replace(GOOD, status=ExecutionStatus.RUNNING, events=WHOLE[:2])], None, "a: it is still running"),
        (["a"], [replace(GOOD, events=WHOLE[:2])], None, "a: its events are ready, stdout"),
        (["a"], [replace(GOOD, events=(*WHOLE, (4, EventKind.EXIT)))], None, "a: its events are"),
        (["a"], [replace(GOOD, events=WHOLE[1:])], None, "a: its events are numbered 2, 3, not 1 to 2"),
        (["a"], [replace(GOOD, status=ExecutionStatus.TIMEOUT)], None, "its status is timeout and its last event exit"),
    ],
)
def test_what_is_wrong_is_named(
    submitted: list[str], histories: list[History], starts: dict[str, int] | None, said: str
) -> None:
    assert any(said in fault for fault in judge(submitted, histories, starts=starts).faults)


def test_made_ready_twice_is_found() -> None:
    events = ((1, EventKind.READY), (2, EventKind.READY), (3, EventKind.EXIT))
    assert judge(["a"], [replace(GOOD, events=events)]).faults == ("a: it was made ready more than once",)


def test_what_was_run_again_may_be_ready_and_begin_once_more_and_no_more() -> None:
    kinds = [EventKind.READY, EventKind.RETRY, EventKind.READY, EventKind.EXIT]
    again = replace(GOOD, events=tuple(enumerate(kinds, 1)))
    assert judge(["a"], [again], starts={"a": 2}).faults == ()
    assert judge(["a"], [again], starts={"a": 3}).faults == ("a: its program began 3 times",)
    kinds[1:1] = [EventKind.READY]
    twice = replace(GOOD, events=tuple(enumerate(kinds, 1)))
    assert judge(["a"], [twice]).faults == ("a: it was made ready more than once",)


@pytest.mark.anyio
async def test_a_history_is_read_through_the_port() -> None:
    clock = FakeClock()
    async with MemoryStateStore(clock) as store:
        execution = await store.create(pending(clock))
        claim = await store.claim(execution.id, NodeId("n"), lease_seconds=9)
        await store.append(claim.lease, [printed(clock, b"x")])
        await store.append(claim.lease, [exited(clock)], ended(claim.execution, clock))
        history = await history_of(store, execution.id)
    assert history == History(
        execution.id, ExecutionStatus.COMPLETED, "exited", ((1, EventKind.STDOUT), (2, EventKind.EXIT))
    )
    assert judge([execution.id], [history]).faults == ()
