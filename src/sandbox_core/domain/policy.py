"""ExecutionPolicy: limits and grants, and how the operator's ceiling and a request meet.

A request can only narrow. What is asked beyond the ceiling is refused field by field; nothing is clamped.
"""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass, field, fields
from itertools import chain

from sandbox_core.domain.errors import InvalidArgument, PolicyRefused, PolicyViolation

WORKSPACE = "/workspace"
"""The private directory that every execution starts in, where the runner gives it one."""

LARGEST_LIMIT = 1 << 40
MAX_ENTRIES = 256
"""Of each list of a policy."""
_LONGEST_SHOWN = 10**30
_MAX_ENTRY_CHARACTERS = 4095


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Which names may be reached. Empty `allowed_domains` (the default) is no network at all.

    `*.example.com` covers every name below example.com but not example.com itself. `denied_domains` win.
    """

    allowed_domains: tuple[str, ...] = ()
    denied_domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_entries("network.allowed_domains", self.allowed_domains)
        _check_entries("network.denied_domains", self.denied_domains)


@dataclass(frozen=True, slots=True)
class FilesystemPolicy:
    """Paths: absolute, starting with `~`, or relative to the workspace.

    The most specific path that covers a file decides; of a grant and a denial of the same path, the denial. What the
    operator's ceiling denies inside what it grants, no request can grant again. `allow_read` names host paths to
    see, read-only, beyond the standard view.
    """

    deny_read: tuple[str, ...] = ()
    allow_write: tuple[str, ...] = ()
    deny_write: tuple[str, ...] = ()
    allow_read: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_entries("filesystem.allow_read", self.allow_read)
        _check_entries("filesystem.deny_read", self.deny_read)
        _check_entries("filesystem.allow_write", self.allow_write)
        _check_entries("filesystem.deny_write", self.deny_write)


@dataclass(frozen=True, slots=True)
class IsolationPolicy:
    """The least isolation that is accepted. `require` holds names of `Isolation.layers`, for example `seccomp`.

    What the request, the ceiling and the defaults require adds up; a run that cannot have it all is refused.
    """

    require: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_entries("isolation.require", self.require)


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """Upper bounds; None is "not said" in a request and "no bound" in a ceiling or a resolved policy."""

    max_memory_mb: int | None = None
    max_cpu_seconds: int | None = None
    max_file_size_mb: int | None = None
    max_processes: int | None = None
    max_open_files: int | None = None
    workspace_mb: int | None = None
    max_output_bytes: int | None = None
    idle_timeout_seconds: float | None = None
    timeout_seconds: float | None = None
    queue_timeout_seconds: float | None = None
    """How long it may wait for its start."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            name = f"resource_limits.{item.name}"
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidArgument(name, "must be a number")
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidArgument(name, "must be a finite number")
            if isinstance(value, float) and not item.name.endswith("timeout_seconds"):
                raise InvalidArgument(name, "must be a whole number")
            if not 0 < value <= LARGEST_LIMIT:
                given = f"is {value}; it " if abs(value) < _LONGEST_SHOWN else ""
                raise InvalidArgument(name, f"{given}must be over 0 and at most {LARGEST_LIMIT}")


@dataclass(frozen=True, slots=True)
class ExecutionPolicy:
    """Limits and grants of one execution; also the shape of a request, of the ceiling and of the defaults."""

    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    filesystem: FilesystemPolicy = field(default_factory=FilesystemPolicy)
    resource_limits: ResourceLimits = field(default_factory=ResourceLimits)
    isolation: IsolationPolicy = field(default_factory=IsolationPolicy)


def resolve(request: ExecutionPolicy, *, ceiling: ExecutionPolicy, defaults: ExecutionPolicy) -> ExecutionPolicy:
    """Return the policy to enforce: what was asked, else the default, always within the ceiling.

    Raises PolicyRefused with every field that asks for more than the ceiling.
    """
    violations = [*_limit_violations(request, ceiling), *_grant_violations(request, ceiling)]
    if violations:
        raise PolicyRefused(violations)
    return ExecutionPolicy(
        network=NetworkPolicy(
            allowed_domains=request.network.allowed_domains,
            denied_domains=_union(ceiling.network.denied_domains, request.network.denied_domains),
        ),
        filesystem=FilesystemPolicy(
            allow_read=request.filesystem.allow_read,
            deny_read=_union(ceiling.filesystem.deny_read, request.filesystem.deny_read),
            allow_write=request.filesystem.allow_write,
            deny_write=_union(ceiling.filesystem.deny_write, request.filesystem.deny_write),
        ),
        resource_limits=_resolve_limits(request.resource_limits, ceiling.resource_limits, defaults.resource_limits),
        isolation=IsolationPolicy(
            require=_union(ceiling.isolation.require, defaults.isolation.require, request.isolation.require)
        ),
    )


def inside_sandbox(path: str) -> str:
    """Return `path` as the sandbox sees it: relative ones start at the workspace, `.`, `..` and `//` are folded."""
    return "/" + posixpath.normpath(posixpath.join(WORKSPACE, path)).lstrip("/")


def path_within(path: str, directory: str) -> bool:
    """True when `path` is `directory` or below it; both absolute and folded."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def path_granted(path: str, granted: str) -> bool:
    """True when `path` is what was `granted` or below it, both as written in a policy.

    A path that starts with `~` is on the host, so only a grant that starts with `~` covers it.
    """
    if path.startswith("~") != granted.startswith("~"):
        return False
    return path_within(inside_sandbox(path), inside_sandbox(granted))


def domain_covers(pattern: str, name: str) -> bool:
    """True when `pattern` (`example.com` or `*.example.com`) covers `name`, itself a name or a pattern."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        return name == pattern or name.removeprefix("*.").endswith(pattern[1:])
    return name == pattern


def _resolve_limits(asked: ResourceLimits, ceiling: ResourceLimits, defaults: ResourceLimits) -> ResourceLimits:
    resolved: dict[str, int | float | None] = {}
    for item in fields(ResourceLimits):
        value = getattr(asked, item.name)
        if value is None:
            bounds = [getattr(defaults, item.name), getattr(ceiling, item.name)]
            value = min((bound for bound in bounds if bound is not None), default=None)
        resolved[item.name] = value
    return ResourceLimits(**resolved)  # type: ignore[arg-type]  # each name keeps the type it had


def _limit_violations(request: ExecutionPolicy, ceiling: ExecutionPolicy) -> list[PolicyViolation]:
    found = []
    for item in fields(ResourceLimits):
        asked, limit = getattr(request.resource_limits, item.name), getattr(ceiling.resource_limits, item.name)
        if asked is not None and limit is not None and asked > limit:
            found.append(PolicyViolation(f"resource_limits.{item.name}", str(asked), f"at most {limit}"))
    return found


def _grant_violations(request: ExecutionPolicy, ceiling: ExecutionPolicy) -> list[PolicyViolation]:
    found = []
    allowed = ceiling.network.allowed_domains
    for name in request.network.allowed_domains:
        if not any(domain_covers(pattern, name) for pattern in allowed):
            found.append(PolicyViolation("network.allowed_domains", name, ", ".join(allowed) or "no domain"))
    files = ceiling.filesystem
    readable, hidden = _union(files.allow_read, files.allow_write), files.deny_read
    found.extend(_path_violations("filesystem.allow_read", request.filesystem.allow_read, readable, hidden))
    kept = _union(files.deny_write, hidden)
    found.extend(_path_violations("filesystem.allow_write", request.filesystem.allow_write, files.allow_write, kept))
    return found


def _path_violations(
    name: str, asked: tuple[str, ...], granted: tuple[str, ...], denied: tuple[str, ...]
) -> list[PolicyViolation]:
    """Return a violation for each path that no grant of the ceiling covers, or that a denial covers more closely."""
    found = []
    for path in asked:
        grant = max((_length(entry) for entry in granted if path_granted(path, entry)), default=0)
        closer = [entry for entry in denied if path_granted(path, entry) and _length(entry) >= grant]
        if not grant:
            found.append(PolicyViolation(name, path, ", ".join(granted) or "no path"))
        elif closer:
            found.append(PolicyViolation(name, path, f"nothing in {', '.join(closer)}, which the operator denies"))
    return found


def _length(path: str) -> int:
    return len(inside_sandbox(path))


def _union(*entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(entries)))


def _check_entries(name: str, entries: tuple[str, ...]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise InvalidArgument(name, f"has {len(entries)} entries; at most {MAX_ENTRIES} are taken")
    for entry in entries:
        if not entry or len(entry) > _MAX_ENTRY_CHARACTERS or "\0" in entry:
            raise InvalidArgument(name, "has an entry that is empty, too long or has a NUL byte")
