"""Our errors as JSON-RPC errors, for methods whose answers have no form of their own for them."""

from __future__ import annotations

from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, SandboxError
from sandbox_mcp.failures import error_fields

_OLDER_RESOURCE_NOT_FOUND: Final = -32002
"""MCP 2025-11-25, section Resources; since 2026-07-28 it is invalid params (SEP-2164)."""

_SHOWN_CHARACTERS: Final = 256


def is_older(ctx: ServerRequestContext[Any, Any]) -> bool:
    """True for a protocol version with a handshake."""
    return ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS


def protocol_error(error: SandboxError) -> MCPError:
    """Return the error to raise; its data has our stable `code`, the facts, and when to try again."""
    mine = isinstance(error, ExecutionNotFound | InvalidArgument)
    return MCPError(INVALID_PARAMS if mine else INTERNAL_ERROR, str(error), error_fields(error))


def resource_not_found(ctx: ServerRequestContext[Any, Any], uri: str) -> MCPError:
    """Return the one error for a URI that is malformed, unknown, expired or another principal's."""
    code = _OLDER_RESOURCE_NOT_FOUND if is_older(ctx) else INVALID_PARAMS
    return MCPError(code, "Resource not found", {"uri": uri[:_SHOWN_CHARACTERS]})
