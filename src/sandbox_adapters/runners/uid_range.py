"""Which kernel uids a server that is root gives to executions: of those that its user namespace has, high ones."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

_USUAL_FIRST, _USUAL_COUNT = 1 << 30, 1 << 29
"""Of all ids, where neither users nor containers are."""
_WELL_KNOWN = 65533
"""From here to 65535 are `nobody` and what is not mapped."""
_FEWEST = 1024

Extent = tuple[int, int]
"""First id and how many follow."""


class NoUids(OSError):
    """There are too few ids to give each execution one of its own."""


def uid_range() -> Extent:
    """Return the first id and how many may be given away, as uid and as gid.

    In a container with a map of ids (user_namespaces(7)) that is the upper half of what it has. Raises NoUids, OSError.
    """
    with open("/proc/self/uid_map", encoding="ascii") as uids, open("/proc/self/gid_map", encoding="ascii") as gids:
        return choose(read_map(uids), read_map(gids))


def read_map(lines: Iterable[str]) -> list[Extent]:
    """Return the ids that a map has in its own namespace."""
    return [(int(first), int(count)) for first, _, count in map(str.split, lines)]


def choose(uids: Iterable[Extent], gids: Iterable[Extent]) -> Extent:
    """Return the range to take ids from, of those that are both uids and gids. Raises NoUids."""
    both = list(_common(list(uids), list(gids)))
    if any(first <= _USUAL_FIRST and first + count >= _USUAL_FIRST + _USUAL_COUNT for first, count in both):
        return _USUAL_FIRST, _USUAL_COUNT
    first, count = max((_upper_half(extent) for extent in both), key=lambda extent: extent[1], default=(0, 0))
    if count < _FEWEST:
        reason = f"this user namespace has too few uids and gids for one for each execution; map {2 * _FEWEST} or more"
        raise NoUids(errno.EINVAL, reason)
    return first, count


def _common(uids: list[Extent], gids: list[Extent]) -> Iterator[Extent]:
    for first, count in uids:
        for other, others in gids:
            start, end = max(first, other), min(first + count, other + others)
            if start < end:
                yield start, end - start


def _upper_half(extent: Extent) -> Extent:
    first, count = extent
    start, end = first + (count + 1) // 2, first + count
    return start, (end if start > _WELL_KNOWN else min(end, _WELL_KNOWN)) - start
