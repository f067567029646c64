"""The published tools."""

from __future__ import annotations

import json

from sandbox_mcp.catalogue import build_catalogue


def test_no_argument_travels_in_a_header() -> None:
    # SandboxServer tells the SDK that there is nothing to look for.
    catalogue = build_catalogue(
        default_timeout_seconds=60, largest_timeout_seconds=300, default_bytes=1, guide_replies=False
    )
    assert len(catalogue) == 8
    for tool in catalogue:
        assert "x-mcp-header" not in json.dumps(tool.input_schema)
