"""Capabilities: what a runner and the operator's settings come to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sandbox_adapters.capabilities import capabilities_of
from sandbox_adapters.limits import Limits
from sandbox_adapters.runners.capabilities import CapableRunner, RunnerCapabilities, possible_grants
from sandbox_adapters.runners.local import LocalRunner
from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import ExecutionPolicy, IsolationPolicy, ResourceLimits
from sandbox_core.testing.scripted_runner import ScriptedRunner

LIMITS = Limits(
    ceiling=ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=9), isolation=IsolationPolicy(("a",))),
    defaults=ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=60, max_processes=3)),
)


class WalledRunner(ScriptedRunner):
    """A runner that says what it enforces."""

    def capabilities(self) -> RunnerCapabilities:
        isolation = Isolation("walled", "3", True, "none", None, ("a", "b"), {"max_processes": "rlimit"}, {"fact": "x"})
        return RunnerCapabilities(isolation, network_grants=True, interception=True, network_facts={"ports": "7"})


def test_the_record_joins_what_the_runner_says_and_what_the_operator_allows() -> None:
    found = capabilities_of(WalledRunner(), LIMITS)
    assert (found.runner, found.runner_version, found.isolated, found.network) == ("walled", "3", True, "none")
    assert (found.layers, found.facts) == (("a", "b"), {"fact": "x", "ports": "7"})
    assert found.limits == {
        "max_processes": "rlimit",
        "timeout_seconds": "server",
        "idle_timeout_seconds": "server",
        "queue_timeout_seconds": "server",
        "max_output_bytes": "server",
    }
    assert (found.network_grants, found.filesystem_grants, found.interception) == (True, False, True)
    assert found.ceiling == LIMITS.ceiling


def test_the_defaults_are_those_that_a_request_really_gets() -> None:
    defaults = capabilities_of(WalledRunner(), LIMITS).defaults
    assert defaults.resource_limits == ResourceLimits(timeout_seconds=9, max_processes=3)
    assert defaults.isolation.require == ("a",)


def test_nothing_is_claimed_of_a_runner_that_says_nothing() -> None:
    found = capabilities_of(ScriptedRunner(), LIMITS)
    assert (found.runner, found.isolated, found.layers, found.network) == ("scripted", False, (), "host")
    assert (found.network_grants, found.filesystem_grants, found.interception) == (False, False, False)


def test_the_local_runner_claims_no_isolation_and_no_grants() -> None:
    runner = LocalRunner()
    assert isinstance(runner, CapableRunner)
    found = capabilities_of(runner, LIMITS)
    assert (found.isolated, found.layers, found.network) == (False, (), "host")
    assert (found.network_grants, found.filesystem_grants) == (False, False)
    assert "max_processes" not in found.limits
    assert "max_open_files" in found.limits


@pytest.mark.parametrize("refused", ["network.allowed_domains", "filesystem.allow_read", None])
def test_a_grant_is_possible_when_it_would_not_be_refused(refused: str | None) -> None:
    def unenforceable(policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
        asked = "network.allowed_domains" if policy.network.allowed_domains else "filesystem.allow_read"
        return [PolicyViolation(asked, "x", "y")] if asked == refused else []

    assert possible_grants(unenforceable) == (
        refused != "network.allowed_domains",
        refused != "filesystem.allow_read",
    )
