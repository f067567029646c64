"""Capabilities: what this server can enforce and what may be asked of it. One record for tools, doctor and library.

It is a value: a front that has no runner of its own is handed the record of the back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from sandbox_adapters.limits import Limits
from sandbox_adapters.runners.capabilities import CapableRunner, RunnerCapabilities
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ExecutionPolicy, resolve
from sandbox_core.ports.runner import ProcessRunner

_HELD_BY_SERVER = {
    "timeout_seconds": "server",
    "idle_timeout_seconds": "server",
    "queue_timeout_seconds": "server",
    "max_output_bytes": "server",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What can be enforced here. It names no path of the host that the ceiling does not name, and no secret.

    Args:
        server_version: version of this package.
        runner, runner_version: what runs the commands.
        isolated: False when code runs with the server's own rights.
        network: what an execution without network grants reaches; see Isolation.
        layers: of every execution; any of them may be required.
        facts: what a layer is exactly, and what a network grant comes with.
        limits: limit -> the mechanism that holds it; a limit that is not here cannot be asked for.
        labels: what the back of this server offers to executions that ask for labels, sorted.
        network_grants: whether domains within the ceiling can be granted.
        filesystem_grants: whether host paths within the ceiling can be granted.
        interception: whether HTTPS is intercepted for secrets that the operator configured.
        ceiling: what may be asked at most.
        defaults: what a request gets that says nothing.
    """

    server_version: str
    runner: str
    runner_version: str
    isolated: bool
    network: str
    ceiling: ExecutionPolicy
    defaults: ExecutionPolicy
    layers: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    network_grants: bool = False
    filesystem_grants: bool = False
    interception: bool = False


def capabilities_of(runner: ProcessRunner, limits: Limits, offers: frozenset[str] = frozenset()) -> Capabilities:
    """Return the record of a runner that was entered, under the limits in force, with the labels that are offered.

    Of a runner that cannot say what it enforces nothing is claimed.
    """
    said = runner.capabilities() if isinstance(runner, CapableRunner) else _nothing_known(runner)
    return Capabilities(
        server_version=version("sandbox-mcp"),
        runner=said.isolation.runner,
        runner_version=said.isolation.version,
        isolated=said.isolation.isolated,
        network=said.isolation.network,
        ceiling=limits.ceiling,
        defaults=resolve(ExecutionPolicy(), ceiling=limits.ceiling, defaults=limits.defaults),
        layers=said.isolation.layers,
        facts={**said.isolation.facts, **said.network_facts},
        limits={**said.isolation.limits, **_HELD_BY_SERVER},
        labels=tuple(sorted(offers)),
        network_grants=said.network_grants,
        filesystem_grants=said.filesystem_grants,
        interception=said.interception,
    )


def _nothing_known(runner: ProcessRunner) -> RunnerCapabilities:
    return RunnerCapabilities(Isolation(runner=runner.name, version="", isolated=False))
