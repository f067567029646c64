"""How a Python caller's arguments become a Submission."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sandbox_adapters.policy_input import parse_policy
from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import parse_idempotency_key, parse_session_id
from sandbox_core.domain.labels import parse_labels
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.domain.status import ExecutionStatus

PolicyInput = ExecutionPolicy | Mapping[str, Any] | None


def make_submission(
    command: str | Sequence[str],
    *,
    timeout_seconds: float | None = None,
    working_directory: str | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | str = b"",
    interactive: bool = False,
    policy: PolicyInput = None,
    session_id: str | None = None,
    idempotency_key: str | None = None,
    retry_safe: bool = False,
    labels: Collection[str] = (),
) -> Submission:
    """Check the arguments and return what `ExecutionService.submit` takes.

    Args:
        command: text for the shell, or a list of a program and its arguments, run without a shell.
        timeout_seconds: wall time, seconds; also accepted inside the policy, but not both.
        policy: an ExecutionPolicy, or a mapping in the shape of `sandbox_config`.
        labels: what whoever runs it must offer, at most 8.

    Raises InvalidArgument naming the argument.
    """
    return Submission(
        command=Command(
            argv=None if isinstance(command, str) else _argv(command),
            shell=command if isinstance(command, str) else None,
            working_directory=working_directory,
            environment=_variables(environment),
            stdin=input_bytes("stdin", stdin),
            interactive=interactive,
        ),
        policy=_policy(policy, timeout_seconds),
        session_id=None if session_id is None else parse_session_id(session_id),
        idempotency_key=None if idempotency_key is None else parse_idempotency_key(idempotency_key),
        retry_safe=retry_safe,
        labels=parse_labels(labels),
    )


def input_bytes(name: str, data: bytes | str) -> bytes:
    """Return text as UTF-8 and bytes as they are. Raises InvalidArgument for anything else."""
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(name, "contains half a surrogate pair, which is not text") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidArgument(name, "must be text or bytes")
    return bytes(data)


def whole_bytes(name: str, value: object) -> int:
    """Return a number of bytes, 0 or more. Raises InvalidArgument for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(name, "must be a whole number of bytes, 0 or more")
    return value


def check_statuses(statuses: Collection[str]) -> frozenset[ExecutionStatus]:
    """Return statuses, also those given as text. Raises InvalidArgument naming what is none."""
    if isinstance(statuses, str) or not isinstance(statuses, Collection):
        raise InvalidArgument("statuses", "must be a set of statuses")
    known = frozenset(ExecutionStatus)
    if unknown := sorted(repr(status) for status in statuses if status not in known):
        raise InvalidArgument("statuses", f"{unknown[0]} is none; there are {', '.join(sorted(known))}")
    return frozenset(map(ExecutionStatus, statuses))


def _argv(command: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(command, Sequence):
        raise InvalidArgument("command", "must be text, or a list of text")
    return tuple(command)


def _variables(environment: Mapping[str, str] | None) -> dict[str, str]:
    if environment is not None and not isinstance(environment, Mapping):
        raise InvalidArgument("environment", "must be a mapping of text")
    return dict(environment or {})


def _policy(given: PolicyInput, timeout_seconds: float | None) -> ExecutionPolicy:
    if given is None:
        policy = ExecutionPolicy()
    else:
        policy = given if isinstance(given, ExecutionPolicy) else parse_policy(given)
    if timeout_seconds is None:
        return policy
    if policy.resource_limits.timeout_seconds not in (None, timeout_seconds):
        raise InvalidArgument("timeout_seconds", "is also given in the policy, with another value; give it once")
    return replace(policy, resource_limits=replace(policy.resource_limits, timeout_seconds=timeout_seconds))
