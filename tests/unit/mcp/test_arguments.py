"""Arguments: strict, refused by name, and published with every bound."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sandbox_core.domain.errors import InvalidArgument
from sandbox_mcp.arguments import ExecuteArguments, ListArguments, OutputArguments
from sandbox_mcp.catalogue import build_catalogue
from sandbox_mcp.validation import parse_arguments

CATALOGUE = build_catalogue(
    default_timeout_seconds=60, largest_timeout_seconds=300, default_bytes=131072, guide_replies=False
)
GUIDE_PARAMETERS = {
    "execute_code": {
        "command",
        "timeout_seconds",
        "interactive",
        "working_directory",
        "environment",
        "sandbox_config",
        "wait_for_completion",
    },
    "execute_code_async": {
        "command",
        "timeout_seconds",
        "interactive",
        "working_directory",
        "environment",
        "sandbox_config",
    },
    "get_execution_output": {"execution_id", "wait", "last_event_id"},
    "get_execution_status": {"execution_id"},
    "list_executions": set(),
    "send_stdin": {"execution_id", "input_data"},
    "cancel_execution": {"execution_id", "force"},
}


def test_unknown_argument_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout: is not an argument of this tool \(did you mean timeout_sec"):
        parse_arguments(ExecuteArguments, {"command": "true", "timeout": 5})


def test_name_of_an_unknown_argument_is_cut_and_escaped() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_arguments(ExecuteArguments, {"command": "true", "a\n\x1b[31m" + "b" * 500: 1})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(caught.value.field) < 120


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "command: is required"),
        ({"command": 1}, "command: must be text or must be a list"),
        ({"command": []}, "command: is empty"),
        ({"command": ["a", None]}, r"command\[1\]: must be text"),
        ({"command": "a", "timeout_seconds": "5"}, "timeout_seconds: must be a number"),
        ({"command": "a", "timeout_seconds": float("inf")}, "timeout_seconds: must be a finite number"),
        ({"command": "a", "interactive": 1}, "interactive: must be true or false"),
        ({"command": "a", "max_bytes": 1.5}, "max_bytes: must be a whole number"),
        ({"command": "a", "environment": {"A": 1}}, r"environment\.A: must be text"),
        ({"command": "a", "session_id": "x" * 129}, "session_id: is too long; at most 128$"),
        ({"command": "a", "session_id": ""}, "session_id: is empty; leave it out instead$"),
        ({"command": "\ud800"}, "command: contains half a surrogate pair"),
    ],
)
def test_problem_names_the_argument(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse_arguments(ExecuteArguments, arguments)


def test_of_many_wrong_items_only_the_first_is_looked_at() -> None:
    """A request holds two million: as errors they are two GB, and the server answers nobody meanwhile."""
    with pytest.raises(ValidationError) as caught:
        ExecuteArguments.model_validate({"command": [0] * 5000})
    assert caught.value.error_count() == 2  # one for each type that it could have been
    with pytest.raises(ValidationError) as caught:
        ExecuteArguments.model_validate({"command": "true", "environment": {str(number): 0 for number in range(5000)}})
    assert caught.value.error_count() == 1
    with pytest.raises(InvalidArgument, match="environment: has 5000 variables; at most 1024 are taken"):
        parse_arguments(ExecuteArguments, {"command": "true", "environment": dict.fromkeys(map(str, range(5000)), 0)})


def test_a_required_text_that_is_empty_is_not_to_be_left_out() -> None:
    with pytest.raises(InvalidArgument, match=r"^execution_id: is empty$"):
        parse_arguments(OutputArguments, {"execution_id": ""})


def test_whole_float_and_null_are_taken() -> None:
    parsed = parse_arguments(OutputArguments, {"execution_id": "x", "max_bytes": 5.0, "last_event_id": None})
    assert (parsed.max_bytes, parsed.last_event_id) == (5, None)
    assert parse_arguments(ListArguments, {"status": None}).status is None


@pytest.mark.parametrize("tool", CATALOGUE, ids=lambda tool: tool.name)
def test_schema_is_bounded_and_has_the_guides_parameters(tool: Any) -> None:
    schema = tool.input_schema
    assert set(schema["properties"]) >= GUIDE_PARAMETERS.get(tool.name, set())
    assert set(schema.get("required", [])) <= GUIDE_PARAMETERS.get(tool.name, set())
    for name, value in schema["properties"].items():
        assert all(part.get("description") for part in value.get("anyOf", [value])), name
        if value.get("type") in {"number", "integer"}:
            assert "maximum" in value, name
            assert "minimum" in value, name
    assert "null" not in str(schema["properties"].get("command"))


def test_operators_bounds_are_published() -> None:
    timeout = next(tool for tool in CATALOGUE if tool.name == "execute_code").input_schema["properties"][
        "timeout_seconds"
    ]
    assert (timeout["default"], timeout["maximum"]) == (60, 300)


def test_every_tool_of_the_guide_is_there_and_annotated() -> None:
    assert {tool.name for tool in CATALOGUE} == {*GUIDE_PARAMETERS, "get_capabilities"}
    assert all(tool.annotations is not None and tool.output_schema is not None for tool in CATALOGUE)
    readers = {tool.name for tool in CATALOGUE if tool.annotations is not None and tool.annotations.read_only_hint}
    assert readers == {"get_execution_output", "get_execution_status", "list_executions", "get_capabilities"}
