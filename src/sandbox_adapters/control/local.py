"""LocalControlChannel: messages to the owners of executions in one process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import anyio

from sandbox_adapters.control.mailbox import Letter, Mailboxes
from sandbox_core.domain.errors import OwnerUnreachable
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.control import ControlAnswer, ControlMessage, Handler


class LocalControlChannel:
    """ControlChannel in the memory of this process. Satisfies `ControlChannel`; use on one event loop.

    A message whose sender was cancelled or was told OwnerUnreachable before it was handled is dropped, so that
    sending again does not double it.

    Args:
        answer_timeout_seconds: how long a sender waits for the owner's answer.
        mailboxes: where the owners are; given when another channel reaches them too.
    """

    def __init__(self, *, answer_timeout_seconds: float = 5, mailboxes: Mailboxes | None = None) -> None:
        self._answer_timeout = answer_timeout_seconds
        self._mailboxes = Mailboxes() if mailboxes is None else mailboxes

    async def tell(self, execution_id: ExecutionId, message: ControlMessage) -> ControlAnswer:
        """Deliver a message and return the owner's answer; NO_OWNER also when the owner leaves before it answers.

        Raises OwnerUnreachable also when the owner's handler fails, with its error as the cause.
        """
        abandoned = False

        async def unless_abandoned() -> ControlMessage | None:
            return None if abandoned else message

        letter = Letter(unless_abandoned)
        if not self._mailboxes.post(execution_id, letter):
            return ControlAnswer.NO_OWNER
        with anyio.move_on_after(self._answer_timeout):
            try:
                await letter.settled.wait()
            finally:
                abandoned = True
        if letter.answer is None:
            raise OwnerUnreachable(execution_id) from letter.error
        return letter.answer

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        """Receive this execution's messages while the context lasts; see `Mailboxes.own`."""
        return self._mailboxes.own(execution_id, handler)
