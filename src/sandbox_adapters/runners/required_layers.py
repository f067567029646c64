"""`isolation.require`: the layers that a policy insists on, against those that a runner applies."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_core.domain.errors import PolicyViolation
from sandbox_core.domain.policy import ExecutionPolicy


def missing_layers(policy: ExecutionPolicy, layers: Sequence[str]) -> list[PolicyViolation]:
    """Return a violation for each required layer that is not one of `layers`."""
    return [
        PolicyViolation(
            "isolation.require", name, ", ".join(layers) or "no layer", "this runner does not apply that layer here"
        )
        for name in policy.isolation.require
        if name not in layers
    ]
