"""ControlChannel: what to tell whoever runs an execution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sandbox_core.domain.ids import ExecutionId


@dataclass(frozen=True, slots=True)
class Cancel:
    """End it: gracefully (SIGTERM, a grace period, then SIGKILL) or, with `force`, at once."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class SendInput:
    """Bytes for standard input, and whether the input ends after them."""

    data: bytes = b""
    end: bool = False


ControlMessage = Cancel | SendInput


class ControlAnswer(StrEnum):
    """What became of a message."""

    DELIVERED = "delivered"
    FINISHED = "finished"
    """The execution has ended."""
    NOT_INTERACTIVE = "not_interactive"
    INPUT_CLOSED = "input_closed"
    INPUT_FULL = "input_full"
    NO_OWNER = "no_owner"
    """Nobody owns it: not started yet, ended, or its node is gone."""


Handler = Callable[[ControlMessage], Awaitable[ControlAnswer]]


class ControlChannel(Protocol):
    """Messages to the owner of an execution.

    Promises: messages of one sender to one execution arrive in order, each at most once, and handled one at a time;
    the answer is the owner's.
    """

    async def tell(self, execution_id: ExecutionId, message: ControlMessage) -> ControlAnswer:
        """Deliver a message and return the owner's answer; NO_OWNER at once when there is none.

        Raises OwnerUnreachable when an owner is known but does not answer within the adapter's bound.
        """
        ...

    def own(self, execution_id: ExecutionId, handler: Handler) -> AbstractAsyncContextManager[None]:
        """Receive this execution's messages while the context lasts. One owner at a time."""
        ...
