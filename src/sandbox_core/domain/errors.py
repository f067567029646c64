"""Every error of the system, in one tree.

    SandboxError                      code (stable, for programs)
    ├── CallerError                   the caller broke a rule; the message says what to do
    │   ├── InvalidArgument           invalid_argument
    │   ├── PolicyRefused             policy_refused
    │   ├── ExecutionNotFound         execution_not_found
    │   ├── ExecutionFinished         execution_finished
    │   ├── IdempotencyConflict       idempotency_conflict
    │   ├── NotInteractive            not_interactive
    │   ├── InputClosed               input_closed
    │   ├── InputFull                 input_full
    │   ├── ServerFull                server_full
    │   ├── Unservable                unservable
    │   └── IllegalTransition         illegal_transition
    └── InfrastructureError           something the caller cannot mend
        ├── ServerDraining            server_draining
        ├── StoreUnavailable          store_unavailable
        ├── StoredDataCorrupt         stored_data_corrupt
        ├── ClaimRefused              claim_refused
        ├── LeaseLost                 lease_lost
        ├── RunnerUnavailable         runner_unavailable
        ├── LaunchFailed              launch_failed
        └── OwnerUnreachable          owner_unreachable

A non-zero exit, a signal, a timeout and a full output log are outcomes of an execution, never errors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar


class SandboxError(Exception):
    """Root of the tree. `code` is stable; the message is for people."""

    code: ClassVar[str] = "sandbox_error"


class CallerError(SandboxError):
    """The caller broke a rule and can mend it."""

    code: ClassVar[str] = "caller_error"


class InvalidArgument(CallerError):
    """An argument is malformed or out of range."""

    code: ClassVar[str] = "invalid_argument"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class PolicyViolation:
    """One field of a policy that was refused: what was asked, the limit, and why."""

    field: str
    asked: str
    limit: str
    reason: str = "over the operator's ceiling"

    def __str__(self) -> str:
        return f"{self.field}: asked {self.asked}, allowed {self.limit} ({self.reason})"


class PolicyRefused(CallerError):
    """The policy asks for more than is allowed, or for a control that the runner cannot enforce."""

    code: ClassVar[str] = "policy_refused"

    def __init__(self, violations: Sequence[PolicyViolation]) -> None:
        listed = "; ".join(str(violation) for violation in violations)
        advice = "Ask for what is allowed, or leave the field out to get the default."
        super().__init__(f"The policy was refused. {listed}. {advice}")
        self.violations = tuple(violations)


class ExecutionNotFound(CallerError):
    """Unknown, expired, or somebody else's: the caller is told the same."""

    code: ClassVar[str] = "execution_not_found"

    def __init__(self, execution_id: str) -> None:
        super().__init__(
            f"Execution not found: {execution_id}. It never existed, has expired, or is not yours. "
            "list_executions shows the ones you can see."
        )
        self.execution_id = execution_id


class ExecutionFinished(CallerError):
    """The execution has ended, so it can no longer be told anything."""

    code: ClassVar[str] = "execution_finished"

    def __init__(self, execution_id: str, status: str) -> None:
        super().__init__(f"Execution {execution_id} has already ended ({status}). Start another one.")
        self.execution_id = execution_id
        self.status = status


class IdempotencyConflict(CallerError):
    """The idempotency key belongs to an execution of something else; nothing was started."""

    code: ClassVar[str] = "idempotency_conflict"

    def __init__(self, execution_id: str, fields: Sequence[str]) -> None:
        super().__init__(
            f"idempotency_key: it was used for execution {execution_id}, which differs in {' and '.join(fields)}. "
            "Send the same request to get that execution, or another key to start this one."
        )
        self.execution_id = execution_id
        self.fields = tuple(fields)


class NotInteractive(CallerError):
    """Input was sent to an execution that was started without `interactive`."""

    code: ClassVar[str] = "not_interactive"

    def __init__(self, execution_id: str) -> None:
        super().__init__(
            f"Execution {execution_id} takes no input. Start it with interactive=true, or pass the input as stdin."
        )
        self.execution_id = execution_id


class InputClosed(CallerError):
    """The program's standard input is closed: by end-of-input, or by the program itself."""

    code: ClassVar[str] = "input_closed"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"The standard input of execution {execution_id} is closed; nothing more can be sent.")
        self.execution_id = execution_id


class InputFull(CallerError):
    """The program does not read its input and the bounded buffer in front of it is full."""

    code: ClassVar[str] = "input_full"

    def __init__(self, execution_id: str, limit_bytes: int) -> None:
        super().__init__(
            f"Execution {execution_id} has not read its last input; at most {limit_bytes} bytes wait for it. "
            "Send less at a time, or try again when it has read some."
        )
        self.execution_id = execution_id
        self.limit_bytes = limit_bytes


class ServerFull(CallerError):
    """No place and no room to wait for one."""

    code: ClassVar[str] = "server_full"

    def __init__(self, what: str, retry_after_seconds: int) -> None:
        super().__init__(f"The server is full: {what}. Try again in {retry_after_seconds} s.")
        self.what = what
        self.retry_after_seconds = retry_after_seconds


class Unservable(CallerError):
    """No back that lives offers every label that was asked for."""

    code: ClassVar[str] = "unservable"

    def __init__(self, labels: Collection[str], offered: Collection[str]) -> None:
        asked, known = sorted(labels), sorted(offered)
        nobody = [label for label in asked if label not in offered]
        problem = f"no worker offers {', '.join(nobody)}" if nobody else "no worker offers all of them together"
        super().__init__(
            f"Nothing can run an execution with the labels {', '.join(asked)}: {problem}. "
            f"Offered now: {', '.join(known) or 'none'}. Ask for these, or for none to run anywhere."
        )
        self.labels = tuple(asked)
        self.offered = tuple(known)


class IllegalTransition(CallerError):
    """The transition table has no such move; nothing was changed."""

    code: ClassVar[str] = "illegal_transition"

    def __init__(self, execution_id: str, current: str, wanted: str) -> None:
        super().__init__(f"Execution {execution_id} cannot go from {current} to {wanted}.")
        self.execution_id = execution_id
        self.current = current
        self.wanted = wanted


class InfrastructureError(SandboxError):
    """Something failed that the caller cannot mend."""

    code: ClassVar[str] = "infrastructure_error"


class ServerDraining(InfrastructureError):
    """The server is shutting down and admits nothing new."""

    code: ClassVar[str] = "server_draining"

    def __init__(self) -> None:
        super().__init__("The server is shutting down and starts nothing new. Try another replica, or again later.")


class StoreUnavailable(InfrastructureError):
    """The store of the state, or the queue, does not answer."""

    code: ClassVar[str] = "store_unavailable"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The state or the queue is not available: {what}. Running executions go on; try again shortly."
        )


class StoredDataCorrupt(InfrastructureError):
    """Stored data cannot be decoded. Never reported as "not found"."""

    code: ClassVar[str] = "stored_data_corrupt"

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"Stored data of {what} cannot be read: {problem}.")
        self.problem = problem


class ClaimRefused(InfrastructureError):
    """The execution is not in a state in which this node may take it."""

    code: ClassVar[str] = "claim_refused"

    def __init__(self, execution_id: str, why: str) -> None:
        super().__init__(f"Execution {execution_id} cannot be claimed: {why}.")
        self.execution_id = execution_id


class LeaseLost(InfrastructureError):
    """The writer no longer holds the lease; nothing was written."""

    code: ClassVar[str] = "lease_lost"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"The lease on execution {execution_id} is held by another node, or has ended.")
        self.execution_id = execution_id


class RunnerUnavailable(InfrastructureError):
    """The runner cannot work on this machine. `fix` says what would make it work."""

    code: ClassVar[str] = "runner_unavailable"

    def __init__(self, runner: str, problem: str, fix: str) -> None:
        super().__init__(f"The {runner} runner cannot work here: {problem}. {fix}")
        self.runner = runner
        self.problem = problem
        self.fix = fix


class LaunchFailed(InfrastructureError):
    """A process could not be started for a reason that is not the command's."""

    code: ClassVar[str] = "launch_failed"


class OwnerUnreachable(InfrastructureError):
    """Nobody answers for a running execution (its node is gone or slow)."""

    code: ClassVar[str] = "owner_unreachable"

    def __init__(self, execution_id: str) -> None:
        super().__init__(
            f"The node that runs execution {execution_id} does not answer. If it is gone, the execution will be "
            "marked lost shortly, or run again when it is retry_safe; read its status, and try again then."
        )
        self.execution_id = execution_id
