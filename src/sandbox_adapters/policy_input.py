"""`sandbox_config` as callers and operators write it, turned into an ExecutionPolicy.

Field names are taken in snake_case and camelCase. Limits of our own may stand at the top or under `resource_limits`.
Every refusal is an InvalidArgument that names the field with its dotted path, for example `network.allowed_domains`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.policy import (
    MAX_ENTRIES,
    ExecutionPolicy,
    FilesystemPolicy,
    IsolationPolicy,
    NetworkPolicy,
    ResourceLimits,
)

PolicyDict = dict[str, dict[str, Any]]
"""Section -> field in snake_case -> the JSON value that was given (None included)."""

LIMITS = "resource_limits"

TOP_LEVEL_LIMITS = (
    "max_output_bytes",
    "max_open_files",
    "workspace_mb",
    "idle_timeout_seconds",
    "timeout_seconds",
    "queue_timeout_seconds",
)
"""Limits that callers may also write beside the sections; the others stand under `resource_limits` only."""

_SECTIONS: Mapping[str, frozenset[str]] = {
    "network": frozenset(item.name for item in fields(NetworkPolicy)),
    "filesystem": frozenset(item.name for item in fields(FilesystemPolicy)),
    LIMITS: frozenset(item.name for item in fields(ResourceLimits)),
    "isolation": frozenset(item.name for item in fields(IsolationPolicy)),
}
_TOP = frozenset((*_SECTIONS, *TOP_LEVEL_LIMITS))
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SHOWN_CHARACTERS = 64
_ADAPTER = TypeAdapter(ExecutionPolicy)

_DESCRIPTIONS: Mapping[str, str] = {
    "network": "Which names the program may reach. Left out: no network at all.",
    "allowed_domains": "Names it may reach, e.g. example.com or *.example.com.",
    "denied_domains": "Names it may not reach; they win over allowed_domains.",
    "filesystem": "Paths, absolute or relative to the workspace. The most specific wins; of the same path, the denial.",
    "allow_read": "Host paths it may read beside what every program sees.",
    "deny_read": "Paths it may not read.",
    "allow_write": "Paths it may write beside its private workspace.",
    "deny_write": "Paths it may not write.",
    "isolation": "The least isolation to accept.",
    "require": "Layers that must be applied, e.g. seccomp; refused where one is not. get_capabilities names them.",
    LIMITS: "Upper bounds. A field left out gets the server's default; asking over the server's ceiling is refused.",
    "max_memory_mb": "Memory, MiB: of all processes where cgroups hold it, else of each.",
    "max_cpu_seconds": "CPU time, seconds: of all processes where cgroups count it, else of each.",
    "max_file_size_mb": "Size of one written file, MiB.",
    "max_processes": "Processes and threads at once.",
    "max_open_files": "Open files of each process.",
    "workspace_mb": "Size of the private workspace, MiB.",
    "max_output_bytes": "Output that is kept, bytes; what is over it in the middle is dropped.",
    "idle_timeout_seconds": "End the program when it has printed nothing for so long, seconds.",
    "timeout_seconds": "End the program after so long, seconds.",
    "queue_timeout_seconds": "Give up when it has waited so long for its start, seconds (failed, never_started).",
}


def parse_policy(given: Mapping[str, Any]) -> ExecutionPolicy:
    """Return the policy that `given` describes; what it leaves out is "not said".

    Raises InvalidArgument with the dotted path of the first field that is unknown, said twice, of the wrong type or
    out of range.
    """
    return build_policy(normalise_policy(given))


def normalise_policy(given: Mapping[str, Any]) -> PolicyDict:
    """Return `given` by section with snake_case names and untouched values. Raises InvalidArgument for the names."""
    if not isinstance(given, Mapping):
        raise InvalidArgument("sandbox_config", "must be an object, for example {}")
    top = _snake_names(given, _TOP, "")
    sections: PolicyDict = {}
    for name, known in _SECTIONS.items():
        section = top.get(name)
        if section is None:
            section = {}
        if not isinstance(section, Mapping):
            raise InvalidArgument(name, "must be an object")
        sections[name] = _snake_names(section, known, f"{name}.")
    limits = sections[LIMITS]
    for name in TOP_LEVEL_LIMITS:
        if name not in top:
            continue
        if name in limits:
            raise InvalidArgument(f"{LIMITS}.{name}", f"is also given as {name}; give it once")
        limits[name] = top[name]
    return sections


def build_policy(sections: PolicyDict) -> ExecutionPolicy:
    """Return the policy of normalised sections; None means "not said". Raises InvalidArgument for the values."""
    _check_lengths(sections)
    _check_text(sections)
    said = {
        name: {key: whole_float(value) for key, value in section.items() if value is not None}
        for name, section in sections.items()
    }
    try:
        # JSON mode: strict about types, and a list is what JSON has for a tuple.
        return _ADAPTER.validate_json(json.dumps(said), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "sandbox_config"
        problem = first["msg"].replace("Input should be", "must be", 1)
        raise InvalidArgument(path, problem[:1].lower() + problem[1:]) from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidArgument("sandbox_config", "holds a value that is not plain JSON") from None


def _check_lengths(sections: PolicyDict) -> None:
    """Refuse long lists first: pydantic looks at every item, and of millions that are wrong each is an error to it."""
    for name, section in sections.items():
        for key, value in section.items():
            if isinstance(value, list | tuple) and len(value) > MAX_ENTRIES:
                raise InvalidArgument(f"{name}.{key}", f"has {len(value)} entries; at most {MAX_ENTRIES} are taken")


def _check_text(sections: PolicyDict) -> None:
    """Refuse what JSON can write and UTF-8 cannot, by name: pydantic would say that it is no JSON."""
    for name, section in sections.items():
        for key, value in section.items():
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, str) and _HALF_PAIR.search(item):
                    raise InvalidArgument(f"{name}.{key}", "contains half a surrogate pair, which is not text")


def whole_float(value: Any) -> Any:
    """Return 5 for 5.0 and anything else as it is: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def policy_as_given(policy: ExecutionPolicy) -> PolicyDict:
    """Return a policy in the shape of `sandbox_config`, without the limits that it does not set."""
    sections: PolicyDict = {}
    for name, section in asdict(policy).items():
        said = {key: value for key, value in section.items() if value is not None}
        sections[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
    return sections


@cache
def _schema_text() -> str:
    schema = _ADAPTER.json_schema()
    definitions = schema.pop("$defs", {})
    properties: dict[str, Any] = {}
    for name in _SECTIONS:
        reference = schema["properties"][name]["$ref"].rsplit("/", 1)[1]
        section = definitions[reference]["properties"]
        properties[name] = {
            "type": "object",
            "description": _DESCRIPTIONS[name],
            "properties": {key: _field_schema(key, value) for key, value in section.items()},
        }
    for name in TOP_LEVEL_LIMITS:
        properties[name] = properties[LIMITS]["properties"][name]
    described = {
        "type": "object",
        "description": "Limits and grants, narrower than the server's ceiling. camelCase names work too.",
        "properties": properties,
    }
    return json.dumps(described)


def policy_json_schema() -> dict[str, Any]:
    """Return the JSON schema of `sandbox_config`, inlined, with snake_case names; a fresh object on each call.

    It does not close the objects (`additionalProperties`), so that a client that validates lets camelCase through;
    parse_policy refuses unknown names itself.
    """
    schema: dict[str, Any] = json.loads(_schema_text())
    return schema


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` with the nearest known name, or ""."""
    if len(name) > _SHOWN_CHARACTERS:
        return ""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _snake_names(given: Mapping[str, Any], known: frozenset[str], prefix: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise InvalidArgument(prefix.rstrip(".") or "sandbox_config", "has a field name that is not text")
        is_camel = len(key) <= _SHOWN_CHARACTERS and key[:1].islower() and "_" not in key
        name = _HUMP.sub("_", key).lower() if is_camel else key
        if name not in known:
            shown = json.dumps(key[:_SHOWN_CHARACTERS])[1:-1] + ("…" if len(key) > _SHOWN_CHARACTERS else "")
            raise InvalidArgument(f"{prefix}{shown}", _unknown(name.lower(), known, prefix))
        if name in renamed:
            raise InvalidArgument(f"{prefix}{name}", f"is given twice, as {name} and {_camel(name)}; give it once")
        renamed[name] = value
    return renamed


def _unknown(name: str, known: frozenset[str], prefix: str) -> str:
    hint = did_you_mean(name, known)
    if not hint:
        homes = [f"{section}.{name}" for section, names in _SECTIONS.items() if name in names]
        hint = f" (did you mean {homes[0]}?)" if homes else ""
    return f"is not a known field{hint}; known{' there' if prefix else ''}: {', '.join(sorted(known))}"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _field_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Drop titles, defaults and the null branch: leaving a field out says the same in fewer words.

    Bounds are inclusive: models' interfaces that take a subset of JSON schema refuse `exclusiveMinimum`.
    """
    kind: dict[str, Any] = next((option for option in schema.get("anyOf", []) if option["type"] != "null"), schema)
    described = {key: value for key, value in kind.items() if key not in {"title", "default"}}
    if described["type"] in {"integer", "number"}:
        described["minimum"] = 1 if described["type"] == "integer" else 0
    return {**described, "description": _DESCRIPTIONS[name]}
