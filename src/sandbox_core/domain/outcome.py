"""How an execution ended: reason, exit code, signal, what it used. And which status each reason means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from sandbox_core.domain.denial import Denial
from sandbox_core.domain.status import ExecutionStatus


class TerminationReason(StrEnum):
    """Why an execution ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    IDLE_TIME = "idle_time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    CANCELLED = "cancelled"
    SETUP_FAILED = "setup_failed"
    NEVER_STARTED = "never_started"
    LOST = "lost"


STATUS_OF_REASON: Mapping[TerminationReason, ExecutionStatus] = MappingProxyType(
    {
        TerminationReason.EXITED: ExecutionStatus.COMPLETED,
        TerminationReason.SIGNALED: ExecutionStatus.COMPLETED,
        TerminationReason.CPU_TIME: ExecutionStatus.COMPLETED,
        TerminationReason.MEMORY: ExecutionStatus.COMPLETED,
        TerminationReason.PROCESSES: ExecutionStatus.COMPLETED,
        TerminationReason.OUTPUT: ExecutionStatus.COMPLETED,
        TerminationReason.WALL_TIME: ExecutionStatus.TIMEOUT,
        TerminationReason.IDLE_TIME: ExecutionStatus.TIMEOUT,
        TerminationReason.CANCELLED: ExecutionStatus.CANCELLED,
        TerminationReason.SETUP_FAILED: ExecutionStatus.FAILED,
        TerminationReason.NEVER_STARTED: ExecutionStatus.FAILED,
        TerminationReason.LOST: ExecutionStatus.FAILED,
    }
)
"""The final status that each reason leads to. Only infrastructure makes `failed`."""


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """What an execution used. Times in seconds; None where the runner could not measure it."""

    wall_seconds: float = 0.0
    user_cpu_seconds: float | None = None
    system_cpu_seconds: float | None = None
    max_rss_bytes: int | None = None
    """The largest resident set of any single process of the tree."""
    stdout_bytes: int = 0
    """Bytes printed, whether kept or dropped."""
    stderr_bytes: int = 0
    dropped_bytes: int = 0
    """Bytes printed past the output cap and not kept."""
    queued_seconds: float = 0.0
    setup_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    """The most that the whole tree used at once, with what it kept in its private file systems."""
    peak_processes: int | None = None
    """The most processes and threads that it had at once."""
    network_sent_bytes: int | None = None
    """Bytes sent to, and received from, the network through the egress proxy; None without network."""
    network_received_bytes: int | None = None
    processes_left: int | None = None
    """Processes of it that were found once it had ended: 0, which was checked; None where nobody could check."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended.

    `exit_code` is the code a shell would report (128 + signal for a signal); None when no command ran.
    `signal` is the number of the signal that ended it, else None. `message` explains a reason other than
    `exited` in one sentence. `denials` is what the sandbox refused meanwhile, at most MAX_DENIALS different ones;
    `denials_omitted` counts the refusals beyond them.
    """

    reason: TerminationReason
    exit_code: int | None = None
    signal: int | None = None
    message: str | None = None
    usage: ResourceUsage = field(default_factory=ResourceUsage)
    denials: tuple[Denial, ...] = ()
    denials_omitted: int = 0

    @property
    def status(self) -> ExecutionStatus:
        """The status that this outcome puts an execution in."""
        return STATUS_OF_REASON[self.reason]
