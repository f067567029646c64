"""From a policy's `filesystem` to regions: which part of the host a command sees, and how. See docs/filesystem.md.

The most specific path decides: of two rules that cover a file the one whose path is longer. For the same path a denial
wins. A denial with wildcards wins over every grant that it covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from sandbox_adapters.runners.child.path_patterns import WILDCARD, PathPatterns
from sandbox_adapters.runners.child.protected_names import protected_part
from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.policy import WORKSPACE, FilesystemPolicy, inside_sandbox, path_within

PRIVATE = (WORKSPACE, "/tmp")  # noqa: S108 - the sandbox's own
"""Where a command may write anyway."""
MAX_COMPARED = 1 << 24
"""Letters of grants times letters of denials with wildcards. Both are a caller's, and the server does nothing else
while it compares them, which takes less than a second up to this."""
MAX_GRANTED = 1 << 16
"""Letters of all grants together, each name of which is looked at. Over some hundred long paths no plan holds them."""
_LETTERS_AT_LEAST = 256
"""Of grants, as they count there: denials alone take time as well, to be read and for every file."""
NEVER_GRANTED = ("/sys", "/run/user", "/boot")
"""The kernel's files and every user's sockets."""

ALLOW_READ, ALLOW_WRITE = "filesystem.allow_read", "filesystem.allow_write"
DENY_READ, DENY_WRITE = "filesystem.deny_read", "filesystem.deny_write"
"""Fields of a policy."""

NO_OPENAT2 = (
    "there is no openat2 here: Linux has it since 5.6, systemd's RestrictSUIDSGID= and DynamicUser= take it away"
)
"""Why no path of the host can be granted where `can_open_paths` says so."""


class Access(IntEnum):
    """What a command may do with a region."""

    NONE = 0
    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Region:
    """A host path where access changes.

    Args:
        path: absolute, folded.
        access: in it, up to the next region below.
        granted: a grant names it; otherwise a denial does.
        field: of the policy, the one that decided.
        parent: the path of the region around it, "" for none.
        exempt: the operator's ceiling names this path itself, so that protected names in it may be written.
    """

    path: str
    access: Access
    granted: bool
    field: str
    parent: str
    exempt: bool


@dataclass(frozen=True, slots=True)
class Grants:
    """Regions, outermost first, and the denials with wildcards that may reach into them."""

    regions: tuple[Region, ...]
    hidden: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()

    def below(self, path: str) -> Iterator[Region]:
        """Yield the regions inside a path."""
        return (region for region in self.regions if region.path != path and path_within(region.path, path))

    @property
    def tops(self) -> Iterator[Region]:
        """Yield the regions that lie in no other."""
        return (region for region in self.regions if not region.parent)


def host_path(path: str) -> str:
    """Return a path of a policy as an absolute one without `.`, `..`, or double slashes; `~` is the server's home."""
    return "/" + os.path.normpath(inside_sandbox(os.path.expanduser(path))).lstrip("/")


def on_host(policy: FilesystemPolicy, visible: Sequence[str] = ()) -> bool:
    """True when a policy grants anything beyond the private directories and `visible` ones."""
    return any(_asks(path, ()) for path in policy.allow_write) or any(
        _asks(path, visible) for path in policy.allow_read
    )


def resolve_grants(policy: FilesystemPolicy, *, visible: Sequence[str] = (), operator: Iterable[str] = ()) -> Grants:
    """Return what a policy without `grant_violations` means.

    Args:
        policy: with every denial in force.
        visible: paths that every command can read; a read of these needs no grant.
        operator: the `allow_write` of the operator's ceiling.
    """
    exempt = {host_path(path) for path in operator}
    fields: dict[str, set[str]] = {}
    for path in policy.allow_read:
        if _asks(path, visible):
            fields.setdefault(host_path(path), set()).add(ALLOW_READ)
    for path in policy.allow_write:
        if _asks(path, ()):
            fields.setdefault(host_path(path), set()).add(ALLOW_WRITE)
    for name, denials in ((DENY_READ, policy.deny_read), (DENY_WRITE, policy.deny_write)):
        for path in denials:
            if not WILDCARD.search(path):
                fields.setdefault(host_path(path), set()).add(name)
    regions: list[Region] = []
    for path in sorted(fields, key=_depth):
        around = [region for region in regions if path_within(path, region.path)]
        parent = max(around, key=lambda region: len(region.path), default=None)
        outer = Access.NONE if parent is None else parent.access
        granted = bool(fields[path] & {ALLOW_READ, ALLOW_WRITE})
        access, decided = _decide(fields[path], outer)
        free = access is Access.WRITE and path in exempt and protected_part(path) is not None
        if (parent is None and access is Access.NONE) or (access is outer and not free):
            continue
        regions.append(Region(path, access, granted, decided, "" if parent is None else parent.path, free))
    tops = [region.path for region in regions if not region.parent]
    return Grants(tuple(regions), tuple(_reaching(policy.deny_read, tops)), tuple(_reaching(policy.deny_write, tops)))


def grant_violations(
    policy: FilesystemPolicy,
    *,
    taken: Sequence[str],
    visible: Sequence[str],
    operator: FilesystemPolicy,
    kept: Sequence[str] = (),
) -> list[PolicyViolation]:
    """Return the grants that no sandbox can have, as far as that can be told without looking at the host.

    Args:
        policy: with every denial in force.
        taken: what the sandbox has of its own: nothing in the way of it can be granted.
        visible: paths that every command can read.
        operator: the `filesystem` of the operator's ceiling.
        kept: where runtime directories are made: a command must not be able to make one for the next server to find.
    """
    found: list[PolicyViolation] = []
    exempt = {host_path(path) for path in operator.allow_write}
    asked = [(ALLOW_READ, path) for path in policy.allow_read if _asks(path, visible)]
    asked += [(ALLOW_WRITE, path) for path in policy.allow_write if _asks(path, ())]
    if (too_much := _too_much(asked, policy)) is not None:
        return [too_much]
    wild = [
        (name, denial, PathPatterns((host_path(denial),)))
        for name, denials in ((DENY_READ, policy.deny_read), (DENY_WRITE, policy.deny_write))
        for denial in denials
        if asked and WILDCARD.search(denial)
    ]
    for field, path in asked:
        reason = _impossible(path, taken)
        full = host_path(path)
        if reason is None and field == ALLOW_WRITE and (inside := [root for root in kept if path_within(root, full)]):
            reason = f"servers keep directories of their own in {inside[0]}; grant one below it"
        part = protected_part(full)
        if reason is None and field == ALLOW_WRITE and part is not None and full not in exempt:
            reason = f"programs on the host run or obey {part!r}; only the operator's ceiling can name the path itself"
        if reason is None:
            covering = (
                f"{name} {denial!r}"
                for name, denial, patterns in wild
                if (name == DENY_READ or field == ALLOW_WRITE) and patterns.covers(full)
            )
            reason = f"{first} covers it" if (first := next(covering, None)) is not None else None
        if reason is None and _overruled(full, field, operator):
            reason = "the operator's ceiling denies it"
        if reason is not None:
            found.append(PolicyViolation(field, path, "a host path that can be granted", reason))
    if asked:
        tops = [host_path(path) for _, path in asked]
        for name, denials in ((DENY_READ, policy.deny_read), (DENY_WRITE, policy.deny_write)):
            for denial in _reaching(denials, tops):
                if "{" in denial:
                    reason = "alternatives in braces are not understood; name each"
                    found.append(PolicyViolation(name, denial, "`*`, `?`, `[...]` and `**`", reason))
    return found


def _too_much(asked: Sequence[tuple[str, str]], policy: FilesystemPolicy) -> PolicyViolation | None:
    if not asked:
        return None
    letters = sum(len(path) for _, path in asked)
    compared = sum(len(denial) for denial in (*policy.deny_read, *policy.deny_write) if WILDCARD.search(denial))
    field, path = asked[0]
    if letters > MAX_GRANTED:
        reason = f"all grants together have {letters} letters; grant a directory around them"
        return PolicyViolation(field, path, f"at most {MAX_GRANTED} letters", reason)
    if max(letters, _LETTERS_AT_LEAST) * compared > MAX_COMPARED:
        reason = f"{letters} letters of grants and {compared} of denials with wildcards take too long to be compared"
        return PolicyViolation(field, path, f"a product of the two of at most {MAX_COMPARED}", reason)
    return None


def _decide(fields: set[str], outer: Access) -> tuple[Access, str]:
    if DENY_READ in fields:
        return Access.NONE, DENY_READ
    if DENY_WRITE in fields:
        return (Access.READ if len(fields) > 1 else min(outer, Access.READ)), DENY_WRITE
    if ALLOW_WRITE in fields:
        return Access.WRITE, ALLOW_WRITE
    return Access.READ, ALLOW_READ


def _asks(path: str, visible: Sequence[str]) -> bool:
    """True when a grant is of something on the host: `~` is, as no sandbox has the home of who wrote the policy."""
    if path.startswith("~"):
        return True
    full = host_path(path)
    return not any(path_within(full, root) for root in (*PRIVATE, *visible))


def _overruled(full: str, field: str, operator: FilesystemPolicy) -> bool:
    """True when the most specific rule of the ceiling around a path is a denial, also one that is written with `~`."""
    granted = operator.allow_write if field == ALLOW_WRITE else (*operator.allow_read, *operator.allow_write)
    denied = (*operator.deny_read, *operator.deny_write) if field == ALLOW_WRITE else operator.deny_read
    return _longest_around(full, denied) > 0 and _longest_around(full, granted) <= _longest_around(full, denied)


def _longest_around(full: str, entries: Iterable[str]) -> int:
    paths = (host_path(entry) for entry in entries)
    return max((len(path) for path in paths if path_within(full, path)), default=0)


def _impossible(path: str, taken: Sequence[str]) -> str | None:
    if path.startswith("~"):
        return "whose home directory is meant cannot be told; write the whole path"
    if WILDCARD.search(path):
        return "a grant cannot have wildcards; name the directory"
    full = host_path(path)
    for root in (*taken, *NEVER_GRANTED):
        if path_within(full, root) or path_within(root, full):
            return f"it is in the way of {root}, which the sandbox has of its own or never shows"
    return None


def _reaching(denials: Iterable[str], tops: Sequence[str]) -> Iterator[str]:
    """Yield the denials with wildcards that may name something in one of `tops`."""
    for denial in denials:
        if not WILDCARD.search(denial):
            continue
        full = host_path(denial)
        wildcard = WILDCARD.search(full)
        literal = full if wildcard is None else full[: wildcard.start()]
        if any(path_within(literal.rstrip("/") or "/", top) or f"{top}/".startswith(literal) for top in tops):
            yield denial


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path
