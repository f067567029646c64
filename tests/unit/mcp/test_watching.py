"""Watching: what is told and when, and what no caller can have more of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sandbox_core.domain.errors import ExecutionNotFound, ServerFull, StoreUnavailable
from sandbox_core.domain.ids import ExecutionId, Principal
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp import watching
from sandbox_mcp.watching import Outbox, Seen, WatchPlaces, watch

pytestmark = pytest.mark.anyio

ALICE, BOB = Principal("alice"), Principal("bob")
ID = ExecutionId("01900000-0000-7000-8000-000000000000")
PENDING, RUNNING, COMPLETED = ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED


class StepService:
    """A service whose execution takes the next of its states with each look."""

    def __init__(self, *states: Seen | Exception, waits: bool = True) -> None:
        self._states = list(states)
        self._waits = waits
        self.waited: list[tuple[int, bool]] = []

    async def wait(
        self, *_: Any, after: int = 0, until_terminal: bool = False, timeout_seconds: float | None = None
    ) -> bool:
        await checkpoint()
        if timeout_seconds is None:
            self.waited.append((after, until_terminal))
        return self._waits

    async def read(self, *_: Any, **__: Any) -> Any:
        state = self._states.pop(0)
        if isinstance(state, Exception):
            raise state

        return SimpleNamespace(execution=SimpleNamespace(status=state.status), last_seq=state.last_seq)


async def told(service: Any, seen: Seen, *, output: bool = True) -> int:
    count = 0

    def tell() -> None:
        nonlocal count
        count += 1

    with anyio.fail_after(30):
        await watch(service, ALICE, ID, seen, tell, output=output)
    return count


async def test_every_change_is_told_until_the_end() -> None:
    service = StepService(Seen(RUNNING, 1), Seen(RUNNING, 1), Seen(RUNNING, 5), Seen(COMPLETED, 6))
    assert await told(service, Seen(PENDING, 0)) == 3
    assert [after for after, _ in service.waited] == [0, 1, 1, 5]


async def test_without_output_only_another_status_is_told_and_waited_for() -> None:
    service = StepService(Seen(RUNNING, 1), Seen(RUNNING, 5), Seen(COMPLETED, 6))
    assert await told(service, Seen(PENDING, 0), output=False) == 2
    assert [until_terminal for _, until_terminal in service.waited] == [False, True, True]


async def test_what_has_ended_is_told_once() -> None:
    assert await told(StepService(), Seen(COMPLETED, 6)) == 1


async def test_what_has_expired_is_told_and_the_watch_is_over() -> None:
    assert await told(StepService(ExecutionNotFound(ID)), Seen(RUNNING, 1)) == 1


async def test_a_server_that_ends_its_waits_ends_the_watch_after_one_more_look() -> None:
    assert await told(StepService(Seen(COMPLETED, 2), waits=False), Seen(RUNNING, 1)) == 1
    assert await told(StepService(Seen(RUNNING, 1), waits=False), Seen(RUNNING, 1)) == 0


async def test_a_store_that_was_away_costs_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "STORE_AWAY_SECONDS", 0.0)
    service = StepService(StoreUnavailable("gone"), StoreUnavailable("gone"), Seen(COMPLETED, 9))
    assert await told(service, Seen(RUNNING, 1)) == 1


async def test_an_outbox_holds_each_item_once_in_order() -> None:
    outbox: Outbox[str] = Outbox()
    for item in ("a", "b", "a"):
        outbox.put(item)
    assert [await outbox.take(), await outbox.take()] == ["a", "b"]
    taken: list[str | None] = []

    async def take() -> None:
        taken.append(await outbox.take())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        outbox.put("c")
    outbox.put("d")
    outbox.close()
    assert [*taken, await outbox.take(), await outbox.take()] == ["c", "d", None]


def test_places_are_counted_for_each_principal_and_overall() -> None:
    places = WatchPlaces(per_principal=3, overall=4)
    places.take(ALICE, 3)
    with pytest.raises(ServerFull):
        places.take(ALICE)
    with pytest.raises(ServerFull), places.held(BOB, 2):
        pass
    with places.held(BOB, 1), pytest.raises(ServerFull):
        places.take(BOB)
    places.give_back(ALICE, 3)
    with places.held(BOB, 3):
        pass
