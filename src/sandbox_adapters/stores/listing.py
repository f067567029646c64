"""Listing: which executions a principal has, by session and status, newest first, at the cost of the page."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from sandbox_core.domain.ids import ExecutionId, Principal, SessionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import LARGEST_PAGE_BYTES

_Key = tuple[Principal, SessionId | None, ExecutionStatus]


class Listing:
    """Sorted ids for each (principal, session or all, status). Ids sort by creation, so most inserts are appends."""

    def __init__(self) -> None:
        self._ids: dict[_Key, list[ExecutionId]] = {}

    def add(
        self, principal: Principal, session_id: SessionId | None, status: ExecutionStatus, execution_id: ExecutionId
    ) -> None:
        """Enter an execution."""
        for key in _keys(principal, session_id, status):
            insort(self._ids.setdefault(key, []), execution_id)

    def remove(
        self, principal: Principal, session_id: SessionId | None, status: ExecutionStatus, execution_id: ExecutionId
    ) -> None:
        """Take an execution out; it must have been added with the same values."""
        for key in _keys(principal, session_id, status):
            ids = self._ids[key]
            del ids[bisect_left(ids, execution_id)]
            if not ids:
                del self._ids[key]

    def newest_first(
        self,
        principal: Principal,
        session_id: SessionId | None,
        statuses: Iterable[ExecutionStatus],
        before: ExecutionId | None,
    ) -> Iterator[ExecutionId]:
        """Yield ids in any of `statuses`, newest first, below `before`; of one session, or of all when it is None."""
        return heapq.merge(
            *(_descending(self._ids.get((principal, session_id, status), []), before) for status in statuses),
            reverse=True,
        )


def first_page(found: Iterable[tuple[ExecutionId, int]], limit: int) -> tuple[list[ExecutionId], ExecutionId | None]:
    """Return the ids that a page has room for, of ids with the sizes of their documents, and the last if more follow.

    Looks at one more than it returns.
    """
    page: list[ExecutionId] = []
    taken = 0
    for execution_id, size in found:
        taken += size
        if page and (len(page) == limit or taken > LARGEST_PAGE_BYTES):
            return page, page[-1]
        page.append(execution_id)
    return page, None


def _keys(principal: Principal, session_id: SessionId | None, status: ExecutionStatus) -> tuple[_Key, ...]:
    if session_id is None:
        return ((principal, None, status),)
    return ((principal, None, status), (principal, session_id, status))


def _descending(ids: list[ExecutionId], before: ExecutionId | None) -> Iterator[ExecutionId]:
    start = len(ids) if before is None else bisect_left(ids, before)
    return (ids[index] for index in range(start - 1, -1, -1))
