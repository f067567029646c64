"""What holds each limit of a sandboxed command where no cgroup does."""

from __future__ import annotations

from sandbox_core.domain.policy import ResourceLimits

_MECHANISMS = {
    "max_memory_mb": "rlimit_data, per process",
    "max_cpu_seconds": "rlimit_cpu, per process",
    "max_file_size_mb": "rlimit_fsize",
    "max_open_files": "rlimit_nofile, per process",
    "workspace_mb": "tmpfs size, for each of /workspace and /tmp",
}


def rlimit_mechanisms(limits: ResourceLimits, *, unique_uid: bool) -> dict[str, str]:
    """Return limit -> mechanism for the limits that are set; `unique_uid`: no other execution has this one's uid."""
    held = {name: text for name, text in _MECHANISMS.items() if getattr(limits, name) is not None}
    if limits.max_processes is not None:
        held["max_processes"] = "rlimit_nproc, unique uid" if unique_uid else "rlimit_nproc, user namespace"
    return held
