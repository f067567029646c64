"""EventLog: the encoded lines of one execution, in memory up to a bound and on disk past it."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from sandbox_adapters.stores.spill import BLOCK_BYTES, SpillFile

_LINE_OVERHEAD_BYTES = 48
"""What a bytes object and its place in a list take beside the data."""

_FIRST_READ_BYTES, _MOST_READ_BYTES = 8 * 1024, 256 * 1024
"""How much is read from disk at once: little at first, for a page may end soon, then twice as much each time."""


class MemoryBudget:
    """How many bytes of lines all logs together may keep in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


class EventLog:
    """Lines numbered from 1. The first ones stay in memory; from the first that does not fit on, they are on disk.

    A line on disk is found by one entry of an index (8 bytes a line), so reading costs what is read, wherever it is.
    """

    __slots__ = (
        "_blocks",
        "_budget",
        "_lines",
        "_memory_bytes",
        "_memory_limit",
        "_offsets",
        "_spill",
        "_spilled",
        "size_bytes",
    )

    def __init__(self, spill: SpillFile, budget: MemoryBudget, memory_limit_bytes: int) -> None:
        self._spill = spill
        self._budget = budget
        self._memory_limit = memory_limit_bytes
        self._lines: list[bytes] = []
        self._memory_bytes = 0
        # Where each line on disk starts, in bytes of this log, and where the last one ends.
        self._offsets: array[int] = array("Q", [0])
        self._blocks: array[int] = array("Q")
        self._spilled = False
        self.size_bytes = 0
        """Bytes of all lines, in memory and on disk."""

    def __len__(self) -> int:
        return len(self._lines) + len(self._offsets) - 1

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines. Raises OSError when the disk refuses; then none was added."""
        size = sum(map(len, lines))
        taken = size + _LINE_OVERHEAD_BYTES * len(lines)
        fits = self._memory_bytes + taken <= self._memory_limit
        if fits and not self._spilled and self._budget.used_bytes + taken <= self._budget.limit_bytes:
            self._lines.extend(lines)
            self._memory_bytes += taken
            self._budget.used_bytes += taken
        else:
            self._append_to_disk(lines)
        self.size_bytes += size

    def forward(self, start: int) -> Iterator[bytes]:
        """Yield the lines from number `start` (1 or more) on."""
        for index in range(start - 1, len(self._lines)):
            yield self._lines[index]
        first, count, size = max(start - 1 - len(self._lines), 0), len(self._offsets) - 1, _FIRST_READ_BYTES
        while first < count:
            last = max(bisect_right(self._offsets, self._offsets[first] + size, first + 1) - 1, first + 1)
            yield from self._from_disk(first, last, range(first, last))
            first, size = last, min(size * 2, _MOST_READ_BYTES)

    def backward(self, stop: int) -> Iterator[bytes]:
        """Yield the lines from the newest down to number `stop + 1`."""
        last, lowest, size = len(self._offsets) - 1, max(stop - len(self._lines), 0), _FIRST_READ_BYTES
        while last > lowest:
            first = min(bisect_left(self._offsets, self._offsets[last] - size, lowest, last), last - 1)
            yield from self._from_disk(first, last, range(last - 1, first - 1, -1))
            last, size = first, min(size * 2, _MOST_READ_BYTES)
        for index in range(len(self._lines) - 1, stop - 1, -1):
            yield self._lines[index]

    def drop(self) -> None:
        """Give back memory and disk. The log is empty afterwards."""
        self._budget.used_bytes -= self._memory_bytes
        self._spill.release(self._blocks)
        self._lines, self._offsets, self._blocks, self._spilled = [], array("Q", [0]), array("Q"), False
        self._memory_bytes = self.size_bytes = 0

    def _append_to_disk(self, lines: Sequence[bytes]) -> None:
        self._spilled = True
        start = self._offsets[-1]
        data = memoryview(b"".join(lines))
        end, position = start + len(data), start
        while len(self._blocks) * BLOCK_BYTES < end:
            self._blocks.append(self._spill.allocate())
        while position < end:
            number, offset = divmod(position, BLOCK_BYTES)
            size = min(BLOCK_BYTES - offset, end - position)
            self._spill.write(self._blocks[number], offset, data[position - start : position - start + size])
            position += size
        # Only now do the lines exist: a write that failed above has left the index as it was.
        for line in lines:
            start += len(line)
            self._offsets.append(start)

    def _from_disk(self, first: int, last: int, order: range) -> Iterator[bytes]:
        start, end = self._offsets[first], self._offsets[last]
        pieces, position = [], start
        while position < end:
            number, offset = divmod(position, BLOCK_BYTES)
            size = min(BLOCK_BYTES - offset, end - position)
            pieces.append(self._spill.read(self._blocks[number], offset, size))
            position += size
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        offsets = self._offsets
        return (data[offsets[index] - start : offsets[index + 1] - start] for index in order)
