"""What a submission may repeat: a key that was used, and a run that was lost."""

from __future__ import annotations

import anyio

from sandbox_core.domain.errors import IdempotencyConflict, InvalidArgument
from sandbox_core.domain.execution import Execution
from sandbox_core.ports.store import StateStore

PUT_BACK_SECONDS = 20.0
"""Over the four thirds of a lease (9 s by default) after which what a dead node ran waits again."""

_COMPARED = ("command", "policy", "retry_safe", "labels")


def check_retry_safe(execution: Execution) -> None:
    """Raise InvalidArgument for a `retry_safe` execution that takes input while it runs: a second run would lack it.

    Also for a `retry_safe` that is neither True nor False.
    """
    if not isinstance(execution.retry_safe, bool):
        raise InvalidArgument("retry_safe", "must be true or false")
    if execution.retry_safe and execution.command.interactive:
        raise InvalidArgument(
            "retry_safe", "cannot go with interactive: what was sent to a run that was lost is gone; give it as stdin"
        )


def check_same_request(first: Execution, wanted: Execution) -> None:
    """Raise IdempotencyConflict unless both ask for the same.

    The session is not compared: a client that comes back through another connection may be in another one. Policies
    are compared as resolved, so a key does not outlive a change of the operator's defaults.
    """
    if different := [name for name in _COMPARED if getattr(first, name) != getattr(wanted, name)]:
        raise IdempotencyConflict(first.id, different)


async def put_back(store: StateStore, execution: Execution) -> bool:
    """Wait until a running execution that may be run again is not in this attempt any more, at most PUT_BACK_SECONDS.

    False when it still is, and at once for one that may not.
    """
    if not execution.may_retry:
        return False
    with anyio.move_on_after(PUT_BACK_SECONDS):
        while True:
            page = await store.read_last(execution.id, max_bytes=0)
            if page.execution.attempt != execution.attempt or page.execution.is_terminal:
                return True
            await store.wait(execution.id, after=page.last_seq)
    return False
