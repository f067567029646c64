"""RemoteRunner: what stands for the runner in a front that runs nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from sandbox_adapters.runners.capabilities import RunnerCapabilities
from sandbox_core.domain.errors import PolicyViolation, RunnerUnavailable
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.runner import Launch, Process

REMOTE = "remote"


class RemoteRunner:
    """Satisfies `ProcessRunner`, and starts nothing. It claims no wall: what it passes on, a worker may refuse.

    A worker refuses before the launch what it cannot enforce, and every execution's `isolation` says what was applied.
    """

    name = REMOTE

    def unenforceable(self, policy: ExecutionPolicy) -> Sequence[PolicyViolation]:  # noqa: ARG002  # of the port
        """Return nothing: only the workers know."""
        return ()

    def start(self, launch: Launch) -> AbstractAsyncContextManager[Process]:  # noqa: ARG002  # of the port
        """Raise RunnerUnavailable."""
        raise RunnerUnavailable(REMOTE, "this server runs nothing itself", "Start `sandbox worker`.")

    def capabilities(self) -> RunnerCapabilities:
        """Return that nothing is known here; grants within the ceiling are passed on."""
        facts = {"workers": "commands run in workers; the isolation of each execution says what was applied"}
        return RunnerCapabilities(
            Isolation(runner=REMOTE, version="", isolated=False, network=REMOTE, facts=facts),
            network_grants=True,
            filesystem_grants=True,
        )
