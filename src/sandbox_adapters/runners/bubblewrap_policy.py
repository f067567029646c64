"""What a policy asks for that bubblewrap alone cannot enforce; see `network.Egress` for its network."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from sandbox_adapters.runners.bubblewrap_options import WRITABLE
from sandbox_adapters.runners.hidden_paths import ROOTS, can_hide
from sandbox_adapters.runners.required_layers import missing_layers
from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.policy import ExecutionPolicy, inside_sandbox, path_within

_LEAST_OPEN_FILES = 16
"""What bwrap needs for itself, under the limit it passes on."""
_WILDCARD = re.compile(r"[*?\[{]")


def unenforceable(policy: ExecutionPolicy, readable: Sequence[str], layers: Sequence[str]) -> list[PolicyViolation]:
    """Return the parts that cannot be enforced, save grants of files: see `grants`.

    `readable` are the roots of all that a command can read, `layers` those that an execution with it has.

    A denial of what the sandbox does not have is enforced by its absence; see `hidden_paths` for what it has.
    """
    found = []
    for path in policy.filesystem.deny_read:
        if may_cover(path, readable) and not can_hide(path, policy.filesystem):
            allowed = f"paths below {' or '.join(ROOTS)}, or that the sandbox does not have"
            reason = "this cannot be hidden: commands need it, it has wildcards, or something in it is allowed"
            found.append(PolicyViolation("filesystem.deny_read", path, allowed, reason))
    for path in policy.filesystem.deny_write:
        if may_cover(path, WRITABLE):
            found.append(
                PolicyViolation(
                    "filesystem.deny_write", path, "paths that are read-only anyway",
                    "this runner cannot protect a path inside the private workspace",
                )
            )  # fmt: skip
    found.extend(missing_layers(policy, layers))
    open_files = policy.resource_limits.max_open_files
    if open_files is not None and open_files < _LEAST_OPEN_FILES:
        found.append(
            PolicyViolation(
                "resource_limits.max_open_files", str(open_files), f"at least {_LEAST_OPEN_FILES}",
                "bwrap itself needs that many to build the sandbox",
            )
        )  # fmt: skip
    return found


def may_cover(path: str, roots: Sequence[str]) -> bool:
    """True when `path`, which may hold wildcards, may name one of `roots` or something in, or around, one.

    `~` is the home directory of whoever wrote the policy: a host path, which sandboxes do not have.
    """
    if path.startswith("~"):
        return False
    full = inside_sandbox(path)
    wildcard = _WILDCARD.search(full)
    if wildcard is None:
        return any(path_within(full, root) or path_within(root, full) for root in roots)
    literal = full[: wildcard.start()]
    folder = posixpath.dirname(literal)
    return any(path_within(folder, root) or root.startswith(literal) for root in roots)
