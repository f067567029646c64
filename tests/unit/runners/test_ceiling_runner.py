from __future__ import annotations

from typing import Any

import pytest

from sandbox_adapters.policy_input import build_policy, normalise_policy
from sandbox_adapters.runners.ceiling import CeilingRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.runner import Launch, ProcessRunner
from sandbox_core.testing.scripted_runner import Script, ScriptedRunner

CEILING = {
    "filesystem": {"allow_read": ["/data"], "deny_read": ["/data/private"]},
    "network": {"allowed_domains": ["example.com"]},
    "resource_limits": {"timeout_seconds": 60},
}
WITHIN = {"filesystem": {"allow_read": ["/data/set"]}, "resource_limits": {"timeout_seconds": 60}}


def policy(given: dict[str, Any]) -> ExecutionPolicy:
    return build_policy(normalise_policy(given))


def launch(given: dict[str, Any]) -> Launch:
    return Launch(ExecutionId("x"), Command(shell="run"), policy(given))


@pytest.fixture
def scripted() -> ScriptedRunner:
    return ScriptedRunner({"run": Script(stdout=b"ran")})


@pytest.fixture
def runner(scripted: ScriptedRunner) -> ProcessRunner:
    return CeilingRunner(scripted, policy(CEILING))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"resource_limits": {"timeout_seconds": 61}}, "resource_limits.timeout_seconds"),
        ({}, "resource_limits.timeout_seconds"),
        ({**WITHIN, "filesystem": {"allow_read": ["/other"]}}, "filesystem.allow_read"),
        ({**WITHIN, "filesystem": {"allow_write": ["/data"]}}, "filesystem.allow_write"),
        ({**WITHIN, "network": {"allowed_domains": ["example.org"]}}, "network.allowed_domains"),
    ],
)
@pytest.mark.anyio
async def test_what_is_over_the_worker_s_ceiling_does_not_start(
    runner: ProcessRunner, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(PolicyRefused) as caught:
        async with runner.start(launch(given)):
            raise AssertionError("it started")
    assert [violation.field for violation in caught.value.violations] == [field]
    assert [violation.reason for violation in caught.value.violations] == ["over the worker's ceiling"]
    assert runner.unenforceable(policy(given)) == caught.value.violations


@pytest.mark.anyio
async def test_what_is_within_starts_and_the_worker_s_denials_are_added(scripted: ScriptedRunner) -> None:
    runner = CeilingRunner(scripted, policy(CEILING))
    assert runner.name == "scripted"
    assert runner.unenforceable(policy(WITHIN)) == ()
    async with runner.start(launch(WITHIN)) as process:
        assert (await process.wait()).exit_code == 0
    started = scripted.launches[-1].policy
    assert started.filesystem.deny_read == ("/data/private",)
    assert started.resource_limits.timeout_seconds == 60


@pytest.mark.anyio
async def test_the_time_in_the_queue_is_over_and_is_the_servers_to_limit(scripted: ScriptedRunner) -> None:
    ceiling = {**CEILING, "resource_limits": {"timeout_seconds": 60, "queue_timeout_seconds": 5}}
    runner = CeilingRunner(scripted, policy(ceiling))
    for asked in (None, 60):
        given = {**WITHIN, "resource_limits": {"timeout_seconds": 60, "queue_timeout_seconds": asked}}
        async with runner.start(launch(given)) as process:
            await process.wait()
