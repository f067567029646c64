"""OwnLoop: the event loop that something belongs to. What waits in another one would never be woken."""

from __future__ import annotations

from anyio.lowlevel import current_token


class OwnLoop:
    """The event loop that runs now, under asyncio or trio.

    Args:
        owner: what belongs to it, as the message names it.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._token = current_token()

    def check(self) -> None:
        """Raise RuntimeError when another event loop runs now."""
        if current_token() != self._token:
            raise RuntimeError(
                f"{self._owner} belongs to the event loop that opened it, and this is another. Open one here too, or "
                "call it there: with anyio.from_thread.run(..., token=...), or asyncio.run_coroutine_threadsafe."
            )
