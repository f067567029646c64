"""Executions as resources: `execution://{id}` and `execution://{id}/output`, to their owner."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, SandboxError
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, Principal, parse_execution_id
from sandbox_mcp.caller import current_principal
from sandbox_mcp.payloads import shortened
from sandbox_mcp.protocol_errors import protocol_error, resource_not_found
from sandbox_mcp.replies import ReplyStyle, Wishes
from sandbox_mcp.views import StatusView
from sandbox_mcp.words import state_words

TAIL_BYTES: Final = 64 * 1024
"""The newest output in `execution://{id}/output`, bytes."""

PAGE_EXECUTIONS: Final = 50
"""Executions on a page of `resources/list`; each is two resources."""

_TEMPLATES_TTL_MS: Final = 3_600_000
_URI: Final = re.compile(r"execution://([0-9a-f-]{36})(/output)?")
_JSON: Final = "application/json"
_TEXT: Final = "text/plain"

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ResourceUri:
    """What a URI names."""

    execution_id: ExecutionId
    output: bool = False

    def __str__(self) -> str:
        return f"execution://{self.execution_id}{'/output' if self.output else ''}"

    @classmethod
    def parse(cls, text: str) -> ResourceUri | None:
        """Return what `text` names; None unless it is written exactly as we write it."""
        found = _URI.fullmatch(text)
        if found is None:
            return None
        try:
            return cls(parse_execution_id(found[1]), found[2] is not None)
        except InvalidArgument:
            return None


class Resources:
    """Answers `resources/list`, `resources/templates/list` and `resources/read`. The service checks the owner."""

    def __init__(self, service: ExecutionService, replies: ReplyStyle) -> None:
        self._service = service
        self._replies = replies

    async def list(self, _: Context, params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        """Return a page of the caller's executions, newest first."""
        cursor = None if params is None else params.cursor
        try:
            before = None if cursor is None else parse_execution_id(cursor)
        except InvalidArgument:
            raise MCPError(types.INVALID_PARAMS, "Unknown cursor") from None
        try:
            page = await self._service.list_page(current_principal(), limit=PAGE_EXECUTIONS, before=before)
        except SandboxError as error:
            raise protocol_error(error) from error
        return types.ListResourcesResult(
            resources=[entry for execution in page.executions for entry in _entries(execution)],
            next_cursor=page.next_before,
            ttl_ms=0,
            cache_scope="private",
        )

    async def templates(
        self, _: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """Return the two templates."""
        if params is not None and params.cursor is not None:
            raise MCPError(types.INVALID_PARAMS, "Unknown cursor: all templates are on the first page")
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    name="execution",
                    title="Execution",
                    uri_template="execution://{execution_id}",
                    description="Status, times, limits, usage and isolation of an execution, without its output.",
                    mime_type=_JSON,
                ),
                types.ResourceTemplate(
                    name="execution-output",
                    title="Output of an execution",
                    uri_template="execution://{execution_id}/output",
                    description=f"The newest {TAIL_BYTES // 1024} KiB that it printed, stdout and stderr as they came.",
                    mime_type=_TEXT,
                ),
            ],
            ttl_ms=_TEMPLATES_TTL_MS,
            cache_scope="public",
        )

    async def read(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """Return what a URI names, as it is now."""
        uri = ResourceUri.parse(params.uri)
        if uri is None:
            raise resource_not_found(ctx, params.uri)
        try:
            text = await (self._output if uri.output else self._status)(current_principal(), uri.execution_id)
        except ExecutionNotFound:
            raise resource_not_found(ctx, params.uri) from None
        except SandboxError as error:
            raise protocol_error(error) from error
        content = types.TextResourceContents(uri=str(uri), mime_type=_TEXT if uri.output else _JSON, text=text)
        return types.ReadResourceResult(contents=[content], ttl_ms=0, cache_scope="private")

    async def _status(self, principal: Principal, execution_id: ExecutionId) -> str:
        page = await self._service.read(principal, execution_id, max_events=1, max_bytes=1)
        view = StatusView(page.execution, str(page.last_seq))
        return json.dumps(self._replies.reply("get_execution_status", view, Wishes())["structuredContent"])

    async def _output(self, principal: Principal, execution_id: ExecutionId) -> str:
        page = await self._service.read_tail(principal, execution_id, max_bytes=TAIL_BYTES)
        text = b"".join(event.data for event in page.events if event.kind.is_output).decode("utf-8", "replace")
        if page.events and page.events[0].seq > 1:
            text = f'[... earlier output: get_execution_output(execution_id="{execution_id}") ...]\n{text}'
        return text


def _entries(execution: Execution) -> list[types.Resource]:
    changed = execution.ended_at or execution.started_at or execution.created_at
    annotations = types.Annotations(last_modified=changed.isoformat())
    state = state_words(execution)
    command = shortened(execution.command.text)
    return [
        types.Resource(
            uri=str(ResourceUri(execution.id, output)),
            name=f"{execution.id}/output" if output else execution.id,
            title=f"Output of: {command}" if output else command,
            description=f"What it printed last ({state})." if output else f"How it went: {state}.",
            mime_type=_TEXT if output else _JSON,
            annotations=annotations,
        )
        for output in (False, True)
    ]
