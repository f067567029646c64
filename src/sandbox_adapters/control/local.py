"""LocalControlChannel: messages to the owners of executions in one process."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from sandbox_core.domain.errors import ClaimRefused, OwnerUnreachable
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.control import ControlAnswer, ControlMessage, Handler


class LocalControlChannel:
    """ControlChannel in the memory of this process. Satisfies `ControlChannel`; use on one event loop.

    Handlers run in tasks of the owner, so a sender that is cancelled interrupts nothing. A message whose sender was
    cancelled or was told OwnerUnreachable before it was handled is dropped, so that sending again does not double it.

    Args:
        answer_timeout_seconds: how long a sender waits for the owner's answer.
    """

    def __init__(self, *, answer_timeout_seconds: float = 5) -> None:
        self._answer_timeout = answer_timeout_seconds
        self._owners: dict[ExecutionId, _Owner] = {}

    async def tell(self, execution_id: ExecutionId, message: ControlMessage) -> ControlAnswer:
        """Deliver a message and return the owner's answer; NO_OWNER also when the owner leaves before it answers.

        Raises OwnerUnreachable also when the owner's handler fails, with its error as the cause.
        """
        owner = self._owners.get(execution_id)
        if owner is None:
            return ControlAnswer.NO_OWNER
        envelope = _Envelope(message)
        owner.receive(envelope)
        with anyio.move_on_after(self._answer_timeout):
            try:
                await envelope.settled.wait()
            finally:
                envelope.abandoned = True
        if envelope.answer is None:
            raise OwnerUnreachable(execution_id) from envelope.error
        return envelope.answer

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        """Receive this execution's messages while the context lasts.

        Entering raises ClaimRefused while another owner is inside. Leaving cancels a handler that still runs.
        """
        return _Owner(self._owners, execution_id, handler)


class _Envelope:
    """A message on its way, and what became of it."""

    __slots__ = ("abandoned", "answer", "error", "message", "settled")

    def __init__(self, message: ControlMessage) -> None:
        self.message = message
        self.settled = anyio.Event()
        self.answer: ControlAnswer | None = None
        self.error: Exception | None = None
        self.abandoned = False

    def settle(self, answer: ControlAnswer | None, error: Exception | None = None) -> None:
        if not self.settled.is_set():
            self.answer, self.error = answer, error
            self.settled.set()


class _Owner:
    """The context of one owner: a mailbox, emptied by a task that lives only while there is mail."""

    def __init__(self, owners: dict[ExecutionId, _Owner], execution_id: ExecutionId, handler: Handler) -> None:
        self._owners = owners
        self._execution_id = execution_id
        self._handler = handler
        self._mailbox: deque[_Envelope] = deque()
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

    def receive(self, envelope: _Envelope) -> None:
        """Take a message into the mailbox."""
        self._mailbox.append(envelope)
        if not self._working and self._tasks is not None:
            self._working = True
            self._tasks.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while self._mailbox:
                envelope = self._mailbox[0]
                if not envelope.abandoned:
                    await self._handle(envelope)
                self._mailbox.popleft()
        finally:
            self._working = False

    async def _handle(self, envelope: _Envelope) -> None:
        try:
            envelope.settle(await self._handler(envelope.message))
        except Exception as error:  # noqa: BLE001  # the sender gets it; the owner's run goes on
            envelope.settle(None, error)
