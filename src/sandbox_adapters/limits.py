"""The ceiling and the default limits in force: built-in values, the operator's over them, what the runner can hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sandbox_adapters.egress.rules import read_entries
from sandbox_adapters.policy_input import LIMITS, PolicyDict, build_policy, normalise_policy
from sandbox_adapters.runners.child.path_patterns import WILDCARD
from sandbox_adapters.settings import Settings, SettingsError, variable_name
from sandbox_core.domain.errors import InvalidArgument, PolicyViolation
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, ResourceLimits, resolve

_MIB = 1024 * 1024

BUILT_IN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    LIMITS: {
        "timeout_seconds": 60,
        "queue_timeout_seconds": 300,
        "max_output_bytes": 10 * _MIB,
        "max_processes": 512,
        "max_open_files": 1024,
        "workspace_mb": 256,
        "max_memory_mb": 2048,
    },
}
"""What a request gets that names no limits."""

BUILT_IN_CEILING: Mapping[str, Mapping[str, Any]] = {
    "filesystem": {"allow_write": [".", "/workspace", "/tmp"]},  # noqa: S108  # a path inside the sandbox
    LIMITS: {
        "max_output_bytes": 256 * _MIB,
        "max_processes": 4096,
        "max_open_files": 65536,
        "workspace_mb": 4096,
        "max_memory_mb": 16384,
        "queue_timeout_seconds": 1800,
    },
}
"""What a request may ask at most; `timeout_seconds` comes from Settings.timeout. No domains.

`queue_timeout_seconds` is at most half of Settings.ttl_seconds, since what waits must not be forgotten meanwhile.
"""

Screen = Callable[[ExecutionPolicy], Sequence[PolicyViolation]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The policies that a service is given."""

    ceiling: ExecutionPolicy
    defaults: ExecutionPolicy


def limits_in_force(settings: Settings, unenforceable: Screen) -> Limits:
    """Return ceiling and defaults for a runner.

    Built-in limits that the runner cannot hold are left out; the operator's never are: SettingsError names each one
    that the runner cannot hold, each default that is over the ceiling, and each entry that no request could ever match.
    """
    own = normalise_policy(settings.ceiling)
    timeout = own[LIMITS].get("timeout_seconds", settings.timeout)
    if "timeout" in settings.model_fields_set and timeout != settings.timeout:
        raise SettingsError(
            f"{variable_name('ceiling')}: timeout_seconds is {timeout}, but {variable_name('timeout')} is "
            f"{settings.timeout:g}; say it once"
        )
    built_in_ceiling = _held({**BUILT_IN_CEILING, LIMITS: {**BUILT_IN_CEILING[LIMITS]}}, unenforceable)
    built_in_ceiling[LIMITS]["timeout_seconds"] = settings.timeout
    longest = BUILT_IN_CEILING[LIMITS]["queue_timeout_seconds"]
    built_in_ceiling[LIMITS]["queue_timeout_seconds"] = min(longest, settings.ttl_seconds / 2)
    ceiling = at_home(build_policy(_merged(built_in_ceiling, own)))
    _check_entries(ceiling)
    asked_defaults = normalise_policy(settings.defaults)
    defaults = build_policy(_merged(_held(BUILT_IN_DEFAULTS, unenforceable), asked_defaults))
    _check_under(ceiling.resource_limits, build_policy(asked_defaults).resource_limits)
    resolved = resolve(ExecutionPolicy(), ceiling=ceiling, defaults=defaults)
    if violations := unenforceable(resolved):
        listed = "; ".join(str(violation) for violation in violations)
        raise SettingsError(
            f"{variable_name('ceiling')}, {variable_name('defaults')}: the {settings.runner} runner cannot hold every "
            f"execution to them. {listed}"
        )
    return Limits(ceiling=ceiling, defaults=defaults)


def at_home(policy: ExecutionPolicy) -> ExecutionPolicy:
    """Return an operator's policy with `~` written out, so that requests are compared with the paths it means."""
    files = policy.filesystem
    written = {item.name: tuple(map(os.path.expanduser, getattr(files, item.name))) for item in fields(files)}
    return replace(policy, filesystem=FilesystemPolicy(**written))


def _held(built_in: Mapping[str, Mapping[str, Any]], unenforceable: Screen) -> PolicyDict:
    sections = {name: dict(section) for name, section in built_in.items()}
    only_limits = build_policy({LIMITS: sections[LIMITS]})
    refused = {violation.field.rsplit(".", 1)[-1] for violation in unenforceable(only_limits)}
    sections[LIMITS] = {name: value for name, value in sections[LIMITS].items() if name not in refused}
    return sections


def _merged(below: PolicyDict, above: PolicyDict) -> PolicyDict:
    return {name: {**below.get(name, {}), **above.get(name, {})} for name in {*below, *above}}


def _check_entries(ceiling: ExecutionPolicy) -> None:
    """Refuse what can never match: an operator would believe it in force until the first request that it is to meet."""
    problems = []
    for name in ("allowed_domains", "denied_domains"):
        try:
            read_entries(f"network.{name}", getattr(ceiling.network, name))
        except InvalidArgument as error:
            problems.append(f"{variable_name('ceiling')}: {error}")
    for name in ("allow_read", "allow_write"):
        for path in filter(WILDCARD.search, getattr(ceiling.filesystem, name)):
            problem = f"{path!r} has a wildcard, which grants cannot have; name the directory"
            problems.append(f"{variable_name('ceiling')}: filesystem.{name}: {problem}")
    if problems:
        raise SettingsError(*problems)


def _check_under(ceiling: ResourceLimits, asked: ResourceLimits) -> None:
    problems = []
    for item in fields(ResourceLimits):
        value, limit = getattr(asked, item.name), getattr(ceiling, item.name)
        if value is not None and limit is not None and value > limit:
            problems.append(f"{variable_name('defaults')}: {item.name} is {value}, over the ceiling of {limit}")
    if problems:
        raise SettingsError(*problems)
