"""The policy of `sandbox run`, from a file or JSON text and the options that add to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_adapters.policy_input import LIMITS, build_policy, normalise_policy
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.policy import ExecutionPolicy

_LARGEST_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What was said on the command line; None and empty mean not said. `lists` are section -> field -> entries."""

    policy: str | None
    limits: Mapping[str, float | None]
    lists: Mapping[str, Mapping[str, Sequence[str] | None]]


def policy_from_options(options: RunOptions) -> ExecutionPolicy:
    """Return the policy; limits given as options win over the file's, entries of lists are added to it.

    Raises InvalidArgument naming the field, or `--policy` when it cannot be read.
    """
    sections = normalise_policy({} if options.policy is None else _read(options.policy))
    sections[LIMITS].update({name: value for name, value in options.limits.items() if value is not None})
    for section, lists in options.lists.items():
        for name, entries in lists.items():
            before = sections[section].get(name) or []
            if entries and isinstance(before, list):  # build_policy refuses what is no list
                sections[section][name] = [*before, *entries]
    return build_policy(sections)


def _read(given: str) -> Mapping[str, Any]:
    text = given
    if not given.lstrip().startswith("{"):
        try:
            with Path(given).open("rb") as file:
                data = file.read(_LARGEST_FILE_BYTES + 1)
        except OSError as error:
            raise InvalidArgument("--policy", f"{given[:200]!r} cannot be read: {error.strerror}") from None
        if len(data) > _LARGEST_FILE_BYTES:
            raise InvalidArgument("--policy", f"{given[:200]!r} is over {_LARGEST_FILE_BYTES} bytes")
        text = data.decode("utf-8", "replace")
    try:
        policy = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("--policy", f"is not JSON: {error}") from None
    if not isinstance(policy, dict):
        raise InvalidArgument("--policy", "must be a JSON object")
    return policy
