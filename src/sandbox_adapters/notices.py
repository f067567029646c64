"""Notices: what a listener of a queue engine has heard, as one notice."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from sandbox_core.domain.errors import StoreUnavailable


class Notices:
    """What was heard since the last question, as one notice.

    Args:
        receive: holds at most one; ends when the connection is gone.
        lost: the error that says why it is gone.
    """

    def __init__(self, receive: MemoryObjectReceiveStream[None], lost: Callable[[], StoreUnavailable]) -> None:
        self._receive = receive
        self._lost = lost

    async def wait(self, seconds: float) -> bool:
        """Return whether something was heard within this time. Raises StoreUnavailable when the connection is gone."""
        with anyio.move_on_after(seconds):
            try:
                await self._receive.receive()
            except anyio.EndOfStream:
                raise self._lost() from None
            return True
        return False
