"""Capabilities as fields for programs and as text for people and models."""

from __future__ import annotations

import json
from typing import Any

from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.policy_input import policy_as_given


def capabilities_payload(capabilities: Capabilities) -> dict[str, Any]:
    """Return everything; `ceiling` and `defaults` in the shape of `sandbox_config`."""
    return {
        "server_version": capabilities.server_version,
        "runner": capabilities.runner,
        "runner_version": capabilities.runner_version,
        "isolated": capabilities.isolated,
        "network": capabilities.network,
        "layers": list(capabilities.layers),
        "facts": dict(capabilities.facts),
        "limits": dict(capabilities.limits),
        "labels": list(capabilities.labels),
        "network_grants": capabilities.network_grants,
        "filesystem_grants": capabilities.filesystem_grants,
        "interception": capabilities.interception,
        "ceiling": policy_as_given(capabilities.ceiling),
        "defaults": policy_as_given(capabilities.defaults),
    }


def capabilities_text(capabilities: Capabilities) -> str:
    """Return the same in a few lines."""
    payload = capabilities_payload(capabilities)
    lines = [
        f"{runner_words(capabilities)}; without grants its network is {capabilities.network}",
        f"layers: {', '.join(capabilities.layers) or 'none'}",
        f"facts: {_pairs(payload['facts'])}",
        f"limits: {_pairs(payload['limits'])}",
        f"labels: {', '.join(capabilities.labels) or 'none'}",
        f"grants: {grant_words(capabilities)}",
        f"ceiling: {json.dumps(payload['ceiling'])}",
        f"defaults: {json.dumps(payload['defaults'])}",
    ]
    return "\n".join(lines)


def runner_words(capabilities: Capabilities) -> str:
    """Return the runner, its version, and whether it isolates."""
    if capabilities.runner == "remote":
        return "remote: workers run the commands, and the isolation of each execution says what was applied"
    isolates = "isolates" if capabilities.isolated else "isolates nothing"
    return f"{capabilities.runner} {capabilities.runner_version}".strip() + f" {isolates}"


def grant_words(capabilities: Capabilities) -> str:
    """Return which grants are possible."""
    possible = {
        "network": capabilities.network_grants,
        "filesystem": capabilities.filesystem_grants,
        "HTTPS interception": capabilities.interception,
    }
    return ", ".join(f"{name} {'yes' if can else 'no'}" for name, can in possible.items())


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} ({value})" for name, value in values.items()) or "none"
