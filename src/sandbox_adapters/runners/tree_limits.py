"""What the cgroup of a whole tree adds to how it ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ResourceLimits
from sandbox_core.ports.runner import LimitHit, ProcessExit

_MIB = 1 << 20
_ENDINGS = frozenset({TerminationReason.EXITED, TerminationReason.SIGNALED})


@dataclass(frozen=True, slots=True)
class TreeRecord:
    """What was counted; None where nothing counted it. `processes` are without those of the sandbox itself.

    `server_ran_out`: nothing counted this tree, and the kernel killed somebody for want of the server's own memory.
    """

    peak_memory_bytes: int | None = None
    oom_kills: int | None = None
    peak_processes: int | None = None
    forks_refused: int | None = None
    server_ran_out: bool = False


def with_tree(exit_: ProcessExit, limits: ResourceLimits, tree: TreeRecord) -> ProcessExit:
    """Return the exit with what the tree used, and with the limits that it ran into.

    A limit that hurt is always among `limits_hit`. It is also the reason when the command failed: when it exited with
    another code than 0 or was ended by a signal, and nothing else is known to have ended it.
    """
    hits: list[LimitHit] = []
    reason, message = exit_.reason, exit_.message
    failed = exit_.reason in _ENDINGS and exit_.exit_code != 0
    if tree.forks_refused and limits.max_processes is not None:
        hits.append(LimitHit("max_processes", limits.max_processes, tree.peak_processes))
        if failed:
            reason = TerminationReason.PROCESSES
            message = f"The limit of {limits.max_processes} processes refused {tree.forks_refused} more."
    if tree.oom_kills:
        peak, limit = tree.peak_memory_bytes, limits.max_memory_mb
        at_limit = limit is not None and (peak is None or peak >= limit * _MIB)
        if limit is not None and at_limit:
            hits.append(LimitHit("max_memory_mb", limit, None if peak is None else round(peak / _MIB, 1)))
        if failed:
            reason = TerminationReason.MEMORY
            message = f"The kernel killed {tree.oom_kills} of its processes " + (
                f"at the limit of {limit} MiB of memory for all of them, with their files in /workspace and /tmp."
                if at_limit
                else "because the server's own memory, or the machine's, was used up; it was not at a limit of its own."
            )
    if tree.server_ran_out and failed:
        reason = TerminationReason.MEMORY
        message = "Killed, probably by the kernel: the memory that all executions of the server share was used up."
    return replace(
        exit_,
        reason=reason,
        message=message,
        limits_hit=(*exit_.limits_hit, *hits),
        peak_memory_bytes=tree.peak_memory_bytes,
        peak_processes=tree.peak_processes,
    )
