"""What a runner says of itself once it was entered: the walls around every execution, and which grants it can make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol, runtime_checkable

from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy, ResourceLimits

EVERY_LIMIT = ResourceLimits(**{item.name: 1 for item in fields(ResourceLimits)})
"""Asks for each limit, to learn which mechanism would hold it."""

_A_NAME = ExecutionPolicy(network=NetworkPolicy(allowed_domains=("example.com",)))
_A_PATH = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=("/var/tmp",)))  # noqa: S108  # only asked about


@dataclass(frozen=True, slots=True)
class RunnerCapabilities:
    """What a runner can enforce on this machine.

    Args:
        isolation: the record of an execution with every limit and no grants; its kernel_uid is nobody's.
        network_grants: whether `network.allowed_domains` can be granted.
        filesystem_grants: whether paths of the host can be granted.
        interception: whether the operator's secrets can be put into HTTPS requests.
        network_facts: what a network grant comes with exactly.
    """

    isolation: Isolation
    network_grants: bool = False
    filesystem_grants: bool = False
    interception: bool = False
    network_facts: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class CapableRunner(Protocol):
    """An optional ability of a ProcessRunner: to say what it can enforce."""

    def capabilities(self) -> RunnerCapabilities:
        """Return what it can enforce. Only after it was entered."""
        ...


def possible_grants(unenforceable: Callable[[ExecutionPolicy], Sequence[PolicyViolation]]) -> tuple[bool, bool]:
    """Return whether a runner grants names, and whether it grants paths: it is asked about one of each."""
    return not unenforceable(_A_NAME), not unenforceable(_A_PATH)
