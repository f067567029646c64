"""The published tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from mcp_types import Tool

from sandbox_mcp.catalogue import build_catalogue

CATALOGUE = build_catalogue(
    default_timeout_seconds=60, largest_timeout_seconds=300, default_bytes=1, guide_replies=False
)


def test_no_argument_travels_in_a_header() -> None:
    # SandboxServer tells the SDK that there is nothing to look for.
    assert len(CATALOGUE) == 8
    for tool in CATALOGUE:
        assert "x-mcp-header" not in json.dumps(tool.input_schema)


TOOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,59}")
"""What every interface takes for the name of a function; hosts put the name of the server before it."""

LONGEST_DESCRIPTION = 1000
KEYWORDS = {
    "string": {"enum", "minLength", "maxLength", "default"},
    "integer": {"minimum", "maximum", "default"},
    "number": {"minimum", "maximum", "default"},
    "boolean": {"default"},
    "array": {"items", "minItems", "maxItems", "default"},
    "object": {"properties", "required"},
}


def parts_of(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and all below it."""
    yield schema
    below = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    for part in [*below, schema["items"]] if "items" in schema else below:
        yield from parts_of(part)


@pytest.mark.parametrize("tool", CATALOGUE, ids=lambda tool: tool.name)
def test_the_schema_of_arguments_keeps_to_what_the_interfaces_of_models_take(tool: Tool) -> None:
    # One keyword too much, and a client or an interface that takes a subset of JSON schema refuses all tools of the
    # agent: no references, one type for each part, nothing beside anyOf, inclusive bounds, texts in enums, and no
    # additionalProperties, of which some want a flag and some a schema.
    assert TOOL_NAME.fullmatch(tool.name)
    assert 0 < len(tool.description or "") < LONGEST_DESCRIPTION
    assert set(tool.input_schema) <= {"type", "properties", "required"}
    assert tool.input_schema["type"] == "object"
    for part in parts_of(tool.input_schema):
        if "anyOf" in part:
            assert set(part) == {"anyOf"}
            continue
        assert set(part) - {"type", "description"} <= KEYWORDS[part["type"]], part
        assert all(isinstance(value, str) for value in part.get("enum", ()))
        assert len(part.get("description", "")) < LONGEST_DESCRIPTION
