"""Pace: how fast a queue empties, as somebody sees who looks at it now and then."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_LOOKS: Final = 32
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS, _UNKNOWN_RETRY_SECONDS = 1, 30, 5


class Pace:
    """Tells from how many items have left, and when that was seen, in how many seconds one more leaves.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: deque[tuple[float, int]] = deque(maxlen=_LOOKS)

    def saw(self, left: int) -> None:
        """Note how many have left since the queue was made."""
        if self._seen and left < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((self._now(), left))

    def retry_after(self) -> int:
        """Return seconds, 1 to 30; 5 while nothing has been seen to leave."""
        left = self._seen[-1][1] - self._seen[0][1] if self._seen else 0
        if not left:
            return _UNKNOWN_RETRY_SECONDS
        mean = (self._seen[-1][0] - self._seen[0][0]) / left
        return min(max(math.ceil(mean), _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
