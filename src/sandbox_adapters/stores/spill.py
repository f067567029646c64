"""SpillFile: one unlinked temporary file that holds what does not fit in memory, in blocks that are used again."""

from __future__ import annotations

import heapq
import os
import tempfile
import weakref
from array import array
from pathlib import Path

BLOCK_BYTES = 256 * 1024
"""The unit that a log owns. A log that spills has more than this already, so at most half of its space is unused."""


class SpillFile:
    """Space on disk for many logs behind one file descriptor.

    The file has no name: it is gone with the process, however the process ends. Freed blocks are used again, lowest
    first, and the file shrinks when its last blocks are free, so its size follows what is kept. Reads and writes are
    plain pread(2) and pwrite(2) of at most a few MiB, which meet the page cache.

    Args:
        directory: where to make the file; None is the system's temporary directory.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._end = 0
        self._free: set[int] = set()
        self._lowest: list[int] = []
        self._closer: weakref.finalize[[int], SpillFile] | None = None

    @property
    def size_bytes(self) -> int:
        """The size of the file now."""
        return self._end * BLOCK_BYTES

    def allocate(self) -> int:
        """Return the number of a block that nobody owns. Raises OSError when the file cannot be made."""
        self._fileno()
        while self._lowest:
            block = heapq.heappop(self._lowest)
            if block in self._free:
                self._free.remove(block)
                return block
        self._end += 1
        return self._end - 1

    def release(self, blocks: array[int]) -> None:
        """Take blocks back."""
        for block in blocks:
            self._free.add(block)
            heapq.heappush(self._lowest, block)
        end = self._end
        while end and end - 1 in self._free:
            end -= 1
            self._free.remove(end)
        if end < self._end and self._descriptor is not None:
            self._end = end
            self._lowest = [block for block in self._lowest if block < end]
            heapq.heapify(self._lowest)
            os.ftruncate(self._descriptor, end * BLOCK_BYTES)

    def write(self, block: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` in `block`; it must end inside the block. Raises OSError (no space, for example)."""
        position = block * BLOCK_BYTES + offset
        while data:
            written = os.pwrite(self._fileno(), data, position)
            data, position = data[written:], position + written

    def read(self, block: int, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` in `block`; the range may run on into the blocks that follow it."""
        return os.pread(self._fileno(), size, block * BLOCK_BYTES + offset)

    def close(self) -> None:
        """Close the file. What was spilled is gone."""
        if self._closer is not None:
            self._closer()
        self._descriptor = None

    def _fileno(self) -> int:
        if self._descriptor is None:
            descriptor, name = tempfile.mkstemp(prefix="sandbox-spill-", dir=self._directory)
            Path(name).unlink()
            self._descriptor = descriptor
            # A store that was never closed must not leak the descriptor.
            self._closer = weakref.finalize(self, os.close, descriptor)
        return self._descriptor
