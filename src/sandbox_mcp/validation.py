"""From a caller's JSON to checked arguments, and from argument models to the published input schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sandbox_adapters.policy_input import did_you_mean, policy_json_schema
from sandbox_core.domain.errors import InvalidArgument
from sandbox_mcp.arguments import Arguments

_SHOWN_CHARACTERS = 64
_LEFT_OUT = frozenset({"title", "additionalProperties"})

ArgumentsT = TypeVar("ArgumentsT", bound=Arguments)


def parse_arguments(model: type[ArgumentsT], given: Mapping[str, Any] | None) -> ArgumentsT:
    """Return checked arguments; null counts as left out.

    Raises InvalidArgument for the first argument that is unknown, missing, of the wrong type or out of bounds.
    """
    known = model.model_fields
    said: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise InvalidArgument(_shown(name), f"is not an argument of this tool{hint}")
        if value is not None:
            said[name] = value
    try:
        return model.model_validate(said)
    except ValidationError as error:
        raise _readable(error, model) from None


def input_schema(model: type[Arguments], *, defaults: Mapping[str, Any], maxima: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published JSON schema of a tool's arguments: no titles, no null branches, only inclusive bounds.

    It keeps to the subset of JSON schema that clients and the interfaces of models take; what they refuse is refused
    before the first call, with all tools of the agent. So it is looser than `parse_arguments`: bounds are inclusive,
    and nothing is said of `additionalProperties`, which some clients take only as a flag and some only as a schema.

    Args:
        defaults: defaults that the operator's settings decide, by argument.
        maxima: upper bounds that the operator's settings decide, by argument.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    schema.pop("description", None)
    properties: dict[str, Any] = {}
    for name, value in schema["properties"].items():
        plain = _plain(value, definitions)
        if name == "sandbox_config":
            plain = policy_json_schema()
        if name in defaults:
            plain["default"] = defaults[name]
        if name in maxima:
            plain["maximum"] = maxima[name]
        properties[name] = plain
    described = {"type": "object", "properties": properties}
    if required := schema.get("required"):
        described["required"] = required
    return described


def _readable(error: ValidationError, model: type[Arguments]) -> InvalidArgument:
    """Put what is wrong with the first wrong argument into one sentence; a union reports one finding per branch."""
    found = error.errors(include_url=False, include_context=True, include_input=False)
    name = str(found[0]["loc"][0])
    branches = [item for item in found if item["loc"][0] == name]
    nested = [item for item in branches if _index(item) is not None]
    wrong = nested[:1] or [item for item in branches if item["type"] not in _WRONG_TYPES][:1] or branches
    problem = " or ".join(dict.fromkeys(_problem(item) for item in wrong))
    index = _index(wrong[0])
    if index is not None:
        return InvalidArgument(f"{name}[{index}]", problem)
    if name == "environment" and len(wrong[0]["loc"]) > 1:
        return InvalidArgument(f"{name}.{_shown(str(wrong[0]['loc'][1]))}", problem)
    if wrong[0]["type"] == "too_short" and not model.model_fields[name].is_required():
        problem += "; leave it out instead"
    return InvalidArgument(name, problem)


_WRONG_TYPES = frozenset({"string_type", "list_type"})
_TOO_LONG = frozenset({"too_long", "string_too_long"})
_SENTENCES = {
    "missing": "is required",
    "string_type": "must be text",
    "string_unicode": "contains half a surrogate pair, which is not text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "too_short": "is empty",
}


def _problem(item: ErrorDetails) -> str:
    if item["type"] in _TOO_LONG:
        return f"is too long; at most {item['ctx']['max_length']}"
    return _SENTENCES.get(item["type"]) or item["msg"].replace("Input should be", "must be", 1)


def _index(item: ErrorDetails) -> int | None:
    return next((part for part in item["loc"][1:] if isinstance(part, int)), None)


def _plain(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Inline references, make bounds inclusive, and drop what is left out, null branches and null defaults."""
    if "$ref" in value:
        definition = _without(definitions[value["$ref"].rsplit("/", 1)[1]], "description")
        return _plain({**definition, **_without(value, "$ref")}, definitions)
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if key in _LEFT_OUT or (key == "default" and item is None):
            continue
        if key == "anyOf":
            branches = [_plain(branch, definitions) for branch in item if branch.get("type") != "null"]
            if len(branches) == 1:
                plain = {**branches[0], **plain}
            else:
                plain["anyOf"] = branches
        elif key == "items" and isinstance(item, Mapping):
            plain[key] = _plain(item, definitions)
        elif key == "exclusiveMinimum":
            plain["minimum"] = item
        else:
            plain[key] = item
    return plain


def _without(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != name}


def _shown(name: str) -> str:
    """A caller's name, safe to show: control characters escaped, long ones cut."""
    return json.dumps(name[:_SHOWN_CHARACTERS])[1:-1] + ("…" if len(name) > _SHOWN_CHARACTERS else "")
