"""StateStore contract: lists, by principal, session and status, in pages."""

from __future__ import annotations

import pytest

from sandbox_core.domain.command import MAX_STDIN_BYTES, Command
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import LARGEST_PAGE_BYTES, ListQuery
from sandbox_core.testing.samples import NODE, cancelled, ended, exited, pending
from sandbox_core.testing.store_harness import StoreHarness

_ALICE, _BOB = Principal("alice"), Principal("bob")
_S1, _S2 = SessionId("s1"), SessionId("s2")


@pytest.mark.anyio
class ListingContract:
    """A list shows one principal's executions, newest first, each once, whatever happens to them."""

    async def test_a_principal_without_executions_has_an_empty_list(self, harness: StoreHarness) -> None:
        page = await harness.store.list_page(ListQuery(_ALICE))
        assert (page.executions, page.next_before) == ((), None)

    async def test_a_list_shows_only_its_principal_and_session(self, harness: StoreHarness) -> None:
        mine = await _created(harness, 2, session_id=_S1)
        other_session = await _created(harness, 1, session_id=_S2)
        no_session = await _created(harness, 1)
        theirs = await _created(harness, 1, principal=_BOB, session_id=_S1)
        assert await _ids(harness, ListQuery(_ALICE)) == _newest_first([*mine, *other_session, *no_session])
        assert await _ids(harness, ListQuery(_ALICE, _S1)) == _newest_first(mine)
        assert await _ids(harness, ListQuery(_BOB, _S1)) == _newest_first(theirs)
        assert await _ids(harness, ListQuery(_BOB, _S2)) == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
    async def test_pages_together_are_the_whole_list(self, harness: StoreHarness, limit: int) -> None:
        executions = await _created(harness, 7)
        found: list[ExecutionId] = []
        before = None
        for _ in range(len(executions) + 1):
            page = await harness.store.list_page(ListQuery(_ALICE, limit=limit, before=before))
            assert len(page.executions) <= limit
            found += [execution.id for execution in page.executions]
            before = page.next_before
            if before is None:
                break
        assert found == _newest_first(executions)

    async def test_a_page_ends_early_where_executions_are_large(self, harness: StoreHarness) -> None:
        count = LARGEST_PAGE_BYTES // MAX_STDIN_BYTES + 1
        large = Command(argv=("cat",), stdin=b"x" * MAX_STDIN_BYTES)
        executions = await _created(harness, count, command=large)
        first = await harness.store.list_page(ListQuery(_ALICE, limit=count))
        assert 1 <= len(first.executions) < count
        second = await harness.store.list_page(ListQuery(_ALICE, limit=count, before=first.next_before))
        assert [each.id for each in (*first.executions, *second.executions)] == _newest_first(executions)
        assert second.next_before is None

    async def test_the_last_page_says_that_it_is_the_last(self, harness: StoreHarness) -> None:
        await _created(harness, 4)
        first = await harness.store.list_page(ListQuery(_ALICE, limit=2))
        second = await harness.store.list_page(ListQuery(_ALICE, limit=2, before=first.next_before))
        assert first.next_before is not None
        assert second.next_before is None

    async def test_a_position_outlives_its_execution(self, harness: StoreHarness) -> None:
        executions = await _created(harness, 4)
        page = await harness.store.list_page(ListQuery(_ALICE, limit=2))
        assert page.next_before is not None
        await harness.store.discard(page.next_before)
        rest = await _ids(harness, ListQuery(_ALICE, before=page.next_before))
        assert rest == _newest_first(executions)[2:]

    async def test_a_position_that_never_was_is_between_its_neighbours(self, harness: StoreHarness) -> None:
        older = await _created(harness, 2)
        between = pending(harness.clock).id
        await harness.advance(0.01)
        await _created(harness, 2)
        assert await _ids(harness, ListQuery(_ALICE, before=between)) == _newest_first(older)

    async def test_statuses_filter_as_they_are_now(self, harness: StoreHarness) -> None:
        waiting, running, finished, stopped = await _created(harness, 4, session_id=_S1)
        await harness.store.claim(running.id, NODE, lease_seconds=15)
        claim = await harness.store.claim(finished.id, NODE, lease_seconds=15)
        await harness.store.append(claim.lease, [exited(harness.clock)], ended(claim.execution, harness.clock))
        await harness.store.finish_unclaimed(cancelled(stopped, harness.clock), [])
        for session_id in (None, _S1):
            for statuses, expected in (
                ({ExecutionStatus.PENDING}, [waiting]),
                ({ExecutionStatus.RUNNING}, [running]),
                ({ExecutionStatus.COMPLETED}, [finished]),
                ({ExecutionStatus.CANCELLED, ExecutionStatus.PENDING}, [waiting, stopped]),
                ({ExecutionStatus.TIMEOUT}, []),
                (set(), [waiting, running, finished, stopped]),
            ):
                query = ListQuery(_ALICE, session_id, frozenset(statuses))
                assert await _ids(harness, query) == _newest_first(expected)

    async def test_a_filtered_list_has_full_pages(self, harness: StoreHarness) -> None:
        executions = await _created(harness, 6)
        kept = executions[::2]
        for execution in executions[1::2]:
            await harness.store.finish_unclaimed(cancelled(execution, harness.clock), [])
        query = ListQuery(_ALICE, statuses=frozenset({ExecutionStatus.PENDING}), limit=2)
        page = await harness.store.list_page(query)
        assert [execution.id for execution in page.executions] == _newest_first(kept)[:2]
        assert page.next_before == _newest_first(kept)[1]


async def _created(
    harness: StoreHarness,
    count: int,
    *,
    principal: Principal = _ALICE,
    session_id: SessionId | None = None,
    command: Command | None = None,
) -> list[Execution]:
    made = []
    for _ in range(count):
        execution = pending(harness.clock, principal=principal, session_id=session_id, command=command)
        made.append(await harness.store.create(execution))
        await harness.advance(0.01)
    return made


async def _ids(harness: StoreHarness, query: ListQuery) -> list[ExecutionId]:
    return [execution.id for execution in (await harness.store.list_page(query)).executions]


def _newest_first(executions: list[Execution]) -> list[ExecutionId]:
    return sorted((execution.id for execution in executions), reverse=True)
