"""Mailboxes: the owners in one process, each with its messages in order, handled one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from sandbox_core.domain.errors import ClaimRefused
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.control import ControlAnswer, ControlMessage, Handler

Opener = Callable[[], Awaitable[ControlMessage | None]]
"""Gives the message when its turn has come; None when its sender took it back meanwhile."""


class Letter:
    """A message on its way, and what became of it.

    `settled` is set with an `answer`, with an `error`, or with neither when its sender had taken it back.
    """

    __slots__ = ("answer", "error", "open", "settled")

    def __init__(self, opener: Opener) -> None:
        self.open = opener
        self.settled = anyio.Event()
        self.answer: ControlAnswer | None = None
        self.error: Exception | None = None

    def settle(self, answer: ControlAnswer | None, error: Exception | None = None) -> None:
        """Say what became of it; only the first word counts."""
        if not self.settled.is_set():
            self.answer, self.error = answer, error
            self.settled.set()


class Mailboxes:
    """The mailboxes of every owner in this process. Use on one event loop."""

    def __init__(self) -> None:
        self._owners: dict[ExecutionId, _Owner] = {}

    def __contains__(self, execution_id: ExecutionId) -> bool:
        """True while somebody here owns the execution."""
        return execution_id in self._owners

    def post(self, execution_id: ExecutionId, letter: Letter) -> bool:
        """Put a letter behind those that wait; False when nobody here owns the execution."""
        owner = self._owners.get(execution_id)
        if owner is None:
            return False
        owner.receive(letter)
        return True

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        """Receive this execution's messages while the context lasts.

        Handlers run in tasks of the owner, so a sender that is cancelled interrupts nothing. Entering raises
        ClaimRefused while another owner is inside. Leaving cancels a handler that still runs.
        """
        return _Owner(self._owners, execution_id, handler)


class _Owner:
    """The context of one owner: a mailbox, emptied by a task that lives only while there is mail."""

    def __init__(self, owners: dict[ExecutionId, _Owner], execution_id: ExecutionId, handler: Handler) -> None:
        self._owners = owners
        self._execution_id = execution_id
        self._handler = handler
        self._mailbox: deque[Letter] = deque()
        self._working = False
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> None:
        if self._execution_id in self._owners:
            raise ClaimRefused(self._execution_id, "somebody owns it here already")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._owners[self._execution_id] = self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owners.get(self._execution_id) is self:
            del self._owners[self._execution_id]
        try:
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()
                # The body's error is not given to the task group, which would wrap it in an ExceptionGroup.
                await self._tasks.__aexit__(None, None, None)
        finally:
            while self._mailbox:
                self._mailbox.popleft().settle(ControlAnswer.NO_OWNER)

    def receive(self, letter: Letter) -> None:
        """Take a letter into the mailbox."""
        self._mailbox.append(letter)
        if not self._working and self._tasks is not None:
            self._working = True
            self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while self._mailbox:
                await self._handle(self._mailbox[0])
                self._mailbox.popleft()
        finally:
            self._working = False

    async def _handle(self, letter: Letter) -> None:
        try:
            message = await letter.open()
            letter.settle(None if message is None else await self._handler(message))
        except Exception as error:  # noqa: BLE001  # the sender gets it; the owner's run goes on
            letter.settle(None, error)
