from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from sandbox_adapters.limits import limits_in_force
from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.domain.errors import PolicyRefused, PolicyViolation
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy, ResourceLimits, resolve


def everything(_: ExecutionPolicy) -> Sequence[PolicyViolation]:
    return ()


def no_workspace(policy: ExecutionPolicy) -> Sequence[PolicyViolation]:
    asked = policy.resource_limits.workspace_mb
    return (
        () if asked is None else (PolicyViolation("resource_limits.workspace_mb", str(asked), "nothing", "no tmpfs"),)
    )


def test_a_request_that_says_nothing_gets_the_built_in_limits() -> None:
    limits = limits_in_force(Settings(), everything)
    resolved = resolve(ExecutionPolicy(), ceiling=limits.ceiling, defaults=limits.defaults)
    assert resolved.resource_limits == ResourceLimits(
        timeout_seconds=60,
        max_output_bytes=10 * 1024 * 1024,
        max_processes=512,
        max_open_files=1024,
        workspace_mb=256,
        max_memory_mb=2048,
        queue_timeout_seconds=300,
    )
    assert resolved.network == NetworkPolicy()


def test_the_built_in_ceiling_has_the_setting_s_timeout_no_domain_and_the_workspace_only() -> None:
    ceiling = limits_in_force(Settings(timeout=20), everything).ceiling
    assert ceiling.resource_limits.timeout_seconds == 20
    with pytest.raises(PolicyRefused, match="timeout_seconds: asked 21"):
        resolve(
            ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=21)),
            ceiling=ceiling,
            defaults=ExecutionPolicy(),
        )
    with pytest.raises(PolicyRefused, match=r"allowed_domains.*allow_write: asked /etc"):
        resolve(
            ExecutionPolicy(
                network=NetworkPolicy(allowed_domains=("a.example",)),
                filesystem=FilesystemPolicy(allow_write=("/etc", "/tmp/x", "sub")),
            ),
            ceiling=ceiling,
            defaults=ExecutionPolicy(),
        )


@pytest.mark.parametrize(("ttl_seconds", "longest"), [(3600, 1800), (7200, 1800), (100, 50)])
def test_what_waits_is_not_forgotten_meanwhile(ttl_seconds: int, longest: float) -> None:
    limits = limits_in_force(Settings(ttl_seconds=ttl_seconds), everything)
    resolved = resolve(ExecutionPolicy(), ceiling=limits.ceiling, defaults=limits.defaults)
    assert resolved.resource_limits.queue_timeout_seconds == min(300, longest)
    assert limits.ceiling.resource_limits.queue_timeout_seconds == longest


def test_the_operator_s_json_goes_over_the_built_in_values() -> None:
    settings = Settings(
        ceiling={"resourceLimits": {"max_memory_mb": 100, "maxProcesses": None}, "filesystem": {"denyRead": ["/x"]}},
        defaults={"max_output_bytes": 5},
    )
    limits = limits_in_force(settings, everything)
    assert limits.ceiling.resource_limits.max_memory_mb == 100
    assert limits.ceiling.resource_limits.max_processes is None
    assert limits.ceiling.resource_limits.max_open_files == 65536
    assert limits.ceiling.filesystem.deny_read == ("/x",)
    assert limits.ceiling.filesystem.allow_write == (".", "/workspace", "/tmp")
    assert limits.defaults.resource_limits.max_output_bytes == 5
    assert limits.defaults.resource_limits.timeout_seconds == 60


def test_a_list_in_the_operator_s_json_replaces_the_built_in_one() -> None:
    limits = limits_in_force(Settings(ceiling={"filesystem": {"allow_write": []}}), everything)
    assert limits.ceiling.filesystem.allow_write == ()


def test_the_home_directory_in_the_operator_s_json_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/operator")
    settings = Settings(ceiling={"filesystem": {"allow_read": ["~"], "deny_read": ["~/.ssh"]}})
    ceiling = limits_in_force(settings, everything).ceiling
    request = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=("/home/operator/project",)))
    resolved = resolve(request, ceiling=ceiling, defaults=ExecutionPolicy()).filesystem
    assert (resolved.allow_read, resolved.deny_read) == (("/home/operator/project",), ("/home/operator/.ssh",))
    for path in ("/home/operator/.ssh/keys", "~/.ssh/keys", "~/project"):
        inside = ExecutionPolicy(filesystem=FilesystemPolicy(allow_read=(path,)))
        with pytest.raises(PolicyRefused):
            resolve(inside, ceiling=ceiling, defaults=ExecutionPolicy())


def test_built_in_limits_that_the_runner_cannot_hold_are_left_out() -> None:
    limits = limits_in_force(Settings(), no_workspace)
    resolved = resolve(ExecutionPolicy(), ceiling=limits.ceiling, defaults=limits.defaults)
    assert resolved.resource_limits.workspace_mb is None
    assert resolved.resource_limits.max_memory_mb == 2048


@pytest.mark.parametrize("name", ["ceiling", "defaults"])
def test_an_operator_s_limit_that_the_runner_cannot_hold_is_refused(name: str) -> None:
    settings = Settings.model_validate({name: {"workspace_mb": 5}})
    with pytest.raises(SettingsError, match=r"workspace_mb: asked 5.*no tmpfs"):
        limits_in_force(settings, no_workspace)


@pytest.mark.parametrize(
    ("section", "field", "entry"),
    [
        ("network", "allowed_domains", "*"),
        ("network", "allowed_domains", "https://example.com/"),
        ("network", "denied_domains", "*.10.0.0.5"),
        ("filesystem", "allow_read", "/srv/*"),
        ("filesystem", "allow_write", "/srv/**"),
    ],
)
def test_an_entry_of_the_ceiling_that_can_never_match_is_refused_by_name(section: str, field: str, entry: str) -> None:
    settings = Settings.model_validate({"ceiling": {section: {field: [entry]}}})
    with pytest.raises(SettingsError, match=rf"SANDBOX_CEILING: {section}\.{field}: '{re.escape(entry)}'"):
        limits_in_force(settings, everything)


def test_what_the_ceiling_denies_may_have_wildcards() -> None:
    denied = Settings(ceiling={"network": {"denied_domains": ["*.a.example"]}, "filesystem": {"deny_read": ["/x/**"]}})
    ceiling = limits_in_force(denied, everything).ceiling
    assert (ceiling.network.denied_domains, ceiling.filesystem.deny_read) == (("*.a.example",), ("/x/**",))


def test_a_default_over_the_ceiling_is_refused() -> None:
    settings = Settings(defaults={"timeout_seconds": 60}, timeout=30)
    with pytest.raises(SettingsError, match="timeout_seconds is 60"):
        limits_in_force(settings, everything)


def test_the_timeout_said_twice_is_refused_when_the_two_differ() -> None:
    with pytest.raises(SettingsError, match="say it once"):
        limits_in_force(Settings(timeout=30, ceiling={"timeout_seconds": 40}), everything)
    limits = limits_in_force(Settings(ceiling={"timeout_seconds": 40}), everything)
    assert limits.ceiling.resource_limits.timeout_seconds == 40
