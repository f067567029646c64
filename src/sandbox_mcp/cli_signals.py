"""The signals that `sandbox run` obeys, and what each of them ends at the moment when it comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

LEAVE_SECONDS: Final = 5.0
"""How long the second signal waits for a server that does not answer."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruptions:
    """What came. `whole` is entered around everything that a signal may end.

    The first one ends it at once, unless `submitting` or `submitted` was called; the second one ends it at once while
    it is being submitted, and LEAVE_SECONDS later from then on.
    """

    def __init__(self) -> None:
        self.whole = anyio.CancelScope()
        self.numbers: list[int] = []
        self._is_submitting = False
        self._is_submitted = False
        self._changed = anyio.Event()

    @property
    def is_submitting(self) -> bool:
        """Whether there may be something that runs."""
        return self._is_submitting

    def submitting(self) -> None:
        """From now on it may have been accepted: the first signal waits until that is known."""
        self._is_submitting = True

    def submitted(self) -> None:
        """From now on whoever iterates `each` ends it."""
        self._is_submitted = True

    async def each(self) -> AsyncGenerator[int, None]:
        """Yield every signal, also those that came before."""
        told = 0
        while True:
            while told < len(self.numbers):
                told += 1
                yield self.numbers[told - 1]
            self._changed = anyio.Event()
            await self._changed.wait()

    def came(self, number: int) -> None:
        """Note a signal."""
        self.numbers.append(number)
        self._changed.set()
        if self._is_submitted and len(self.numbers) > 1:
            self.whole.deadline = min(self.whole.deadline, anyio.current_time() + LEAVE_SECONDS)
        elif not self._is_submitted and len(self.numbers) > int(self._is_submitting):
            self.whole.cancel()


@contextmanager
def interruptions() -> Iterator[Interruptions]:
    """Hear signals while the context lasts; asyncio only.

    Whoever started us with a signal ignored (nohup, a shell's background job) wants it ignored.
    """
    heard = Interruptions()
    loop = asyncio.get_running_loop()
    obeyed = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in obeyed:
        loop.add_signal_handler(number, heard.came, number)
    try:
        yield heard
    finally:
        for number in obeyed:
            loop.remove_signal_handler(number)
