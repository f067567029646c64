"""ProcessRunner and Process: how a command becomes a process, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import Denial
from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.ids import ExecutionId, Principal
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy


class Stream(StrEnum):
    """The two output streams of a process."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Launch:
    """What a runner needs to start one process. `policy` is resolved: None in a limit means no bound.

    `principal` is who asked, None for nobody: a runner may hold things ready for some callers alone.
    """

    execution_id: ExecutionId
    command: Command
    policy: ExecutionPolicy
    principal: Principal | None = None


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A limit that ended or hurt a run: its name in ResourceLimits, the limit, and the value reached if known."""

    name: str
    limit: float
    reached: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """How a process tree ended, seen from the runner.

    `reason` is one of exited, signaled, cpu_time, memory, processes, setup_failed, lost; the supervisor knows the
    other reasons. `exit_code` is what a shell would report, None when the command never ran.
    """

    reason: TerminationReason
    exit_code: int | None = None
    signal: int | None = None
    message: str | None = None
    user_cpu_seconds: float | None = None
    system_cpu_seconds: float | None = None
    max_rss_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_processes: int | None = None
    processes_left: int | None = None
    """Processes found after the end, see ResourceUsage; None where that was not checked."""
    limits_hit: tuple[LimitHit, ...] = ()
    denials: tuple[Denial, ...] = ()
    """What the sandbox refused, in order of the first refusal."""
    denials_omitted: int = 0
    """Refusals that the runner did not keep."""
    network_sent_bytes: int | None = None
    """Bytes to, and from, the network; None without network."""
    network_received_bytes: int | None = None


class Process(Protocol):
    """A running process tree. `ProcessRunner.start` yields it from an async context manager.

    Promises: leaving the context ends the whole tree and releases every resource, also under cancellation, in bounded
    time. After `wait` returned no process of the tree exists. A program that cannot be found exits 127, one that
    cannot be executed 126, both with one line on stderr that names it; a missing working directory is `setup_failed`.
    """

    @property
    def isolation(self) -> Isolation:
        """What is enforced around this process."""
        ...

    async def read(self, stream: Stream, max_bytes: int) -> bytes:
        """Return 1 to `max_bytes` bytes as soon as there are any; b"" at the end of the stream.

        Each stream has at most one reader. The two ends may be reached in either order; both come no later than the
        end of the tree, also when a daemon holds the stream open.
        """
        ...

    async def send_stdin(self, data: bytes) -> None:
        """Write all of `data` to standard input, waiting while the pipe is full.

        Raises InputClosed when the program or `close_stdin` closed it.
        """
        ...

    async def close_stdin(self) -> None:
        """Close standard input, so that the program reads end of file. Again, or too late, is no error."""
        ...

    async def terminate(self) -> None:
        """Ask the payload to end (SIGTERM to its process group). No error when it has ended."""
        ...

    async def kill(self) -> None:
        """End the whole tree now (SIGKILL). No error when it has ended."""
        ...

    async def wait(self) -> ProcessExit:
        """Wait until the whole tree is gone and return how it ended. May be called more than once."""
        ...


class ProcessRunner(Protocol):
    """Starts processes. The supervisor owns when; a runner owns how, and reports what it enforced."""

    @property
    def name(self) -> str:
        """Short name for records and people, for example `bubblewrap`."""
        ...

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
        """Return every part of a resolved policy that this runner cannot enforce; empty when it can all.

        A layer of `isolation.require` that the runner would not put into `Isolation.layers` is such a part.
        """
        ...

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:
        """Start one process on entering the returned context; leaving it ends the tree.

        Entering raises PolicyRefused for a policy with unenforceable parts, RunnerUnavailable when the runner does not
        work any more, LaunchFailed when the machine refused (out of processes, descriptors). Every start
        is a new, empty workspace.
        """
        ...
