"""What a submission may repeat: a key that was used, and a run that was lost."""

from __future__ import annotations

from sandbox_core.domain.errors import IdempotencyConflict, InvalidArgument
from sandbox_core.domain.execution import Execution

_COMPARED = ("command", "policy", "retry_safe", "labels")


def check_retry_safe(execution: Execution) -> None:
    """Raise InvalidArgument for a `retry_safe` execution that takes input while it runs: a second run would lack it."""
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
