"""The MCP server: protocol on one side, the tools on the other. Transports are elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Any, Final

import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.logging import get_logger
from sandbox_adapters.policy_input import did_you_mean
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import InfrastructureError, SandboxError
from sandbox_core.domain.ids import ExecutionId, Principal
from sandbox_mcp.arguments import DEFAULT_RESULT_BYTES, LARGEST_RESULT_BYTES
from sandbox_mcp.caller import Caller, caller_of
from sandbox_mcp.catalogue import INSTRUCTIONS, build_catalogue
from sandbox_mcp.failures import error_fields, internal_error_fields
from sandbox_mcp.guide_replies import GuideReplies
from sandbox_mcp.large_answers import fitting_bytes
from sandbox_mcp.listen_streams import ListenStreams
from sandbox_mcp.replies import ReplyStyle, SandboxReplies, ToolResult, Wishes
from sandbox_mcp.resources import Resources
from sandbox_mcp.subscriptions import Subscriptions
from sandbox_mcp.tasks_extension import EXTENSION, TASK_AFTER_SECONDS, Tasks, require_tasks
from sandbox_mcp.tools import Tools
from sandbox_mcp.validation import parse_arguments
from sandbox_mcp.views import ExecutionView, View
from sandbox_mcp.watching import WatchPlaces

SERVER_NAME: Final = "sandbox"
LARGEST_EVENT_BYTES: Final = 1_000_000
"""What an answer that goes out as an event may have: SDK clients refuse events over 1 MiB."""
LARGEST_LINE_BYTES: Final = 8_000_000
"""What an answer over stdio may have: clients with the TypeScript SDK end the connection at a line over 10 MiB."""
_LARGEST_GROWTH: Final = 18
"""Bytes of an answer for one of output at most: a control character as text, in its stream and in its event."""
_EVENT_BYTES: Final = 256
"""What an event adds at most beside its output."""

_CATALOGUE_TTL_MS: Final = 3_600_000

_log = get_logger(__name__)


class _Protocol(Server[Any]):
    """The SDK's server, claiming what is so: no list that changes is pushed, and tasks are not for older clients."""

    def get_capabilities(
        self, *args: Any, protocol_version: str | None = None, **kwargs: Any
    ) -> types.ServerCapabilities:
        """Return the capabilities for one era."""
        found = super().get_capabilities(*args, protocol_version=protocol_version, **kwargs)
        for listed in (found.tools, found.resources):
            if listed is not None:
                listed.list_changed = False
        if protocol_version in MODERN_PROTOCOL_VERSIONS:
            found.extensions = {**(found.extensions or {}), EXTENSION: {}}
        return found


class SandboxServer:
    """Answers tools, resources, subscriptions and tasks for every transport and era.

    Args:
        service: what the tools work on.
        capabilities: what get_capabilities answers: the record of the back, which may be elsewhere.
        default_timeout_seconds: what an execution gets that asks for none, shown in the schemas; None: no limit.
        largest_timeout_seconds: the ceiling of timeout_seconds, shown in the schemas; None when there is none.
        guide_replies: answer in the shape of the guide's server.
        older_subscriptions: whether older clients have sessions that updates of a resource can be sent on.
        ttl_seconds: how long an execution is kept after its last use, told to clients of tasks.
    """

    def __init__(
        self,
        service: ExecutionService,
        *,
        capabilities: Capabilities,
        default_timeout_seconds: float | None = 60.0,
        largest_timeout_seconds: float | None = None,
        guide_replies: bool = False,
        older_subscriptions: bool = True,
        ttl_seconds: float = 3600.0,
    ) -> None:
        default_bytes = LARGEST_RESULT_BYTES if guide_replies else DEFAULT_RESULT_BYTES
        self._replies: ReplyStyle = GuideReplies() if guide_replies else SandboxReplies()
        self._tools = Tools(
            service, capabilities=capabilities, default_bytes=default_bytes, always_events=guide_replies
        )
        self._catalogue = build_catalogue(
            default_timeout_seconds=default_timeout_seconds,
            largest_timeout_seconds=largest_timeout_seconds,
            default_bytes=default_bytes,
            guide_replies=guide_replies,
        )
        # The SDK walks a schema on every call for `x-mcp-header` marks. Ours have none (a test holds that), so it
        # is given nothing to walk.
        self._input_schemas: Mapping[str, Mapping[str, Any]] = {tool.name: {} for tool in self._catalogue}
        self._default_wishes = Wishes(events=guide_replies)
        self._default_bytes = default_bytes
        places = WatchPlaces()
        resources = Resources(service, self._replies)
        self._subscriptions = Subscriptions(service, places)
        self._tasks = Tasks(service, result_of=self._task_result, ttl_seconds=ttl_seconds)
        self.listen_streams = ListenStreams(service, places, check_tasks=require_tasks, task_state=self._tasks.state)
        self.mcp: Server[Any] = _Protocol(
            SERVER_NAME,
            version=version("sandbox-mcp"),
            title="Sandbox",
            instructions=INSTRUCTIONS,
            cache_hints={"tools/list": CacheHint(ttl_ms=_CATALOGUE_TTL_MS, scope="public")},
            lifespan=self._lifespan,
            get_tool_input_schema=self._input_schema,
            on_list_tools=self._list_tools,
            on_list_resources=resources.list,
            on_list_resource_templates=resources.templates,
            on_read_resource=resources.read,
            on_subscribe_resource=self._subscriptions.subscribe if older_subscriptions else None,
            on_unsubscribe_resource=self._subscriptions.unsubscribe if older_subscriptions else None,
            on_subscriptions_listen=self.listen_streams.listen,
        )
        self.mcp.add_request_handler("tools/call", types.CallToolRequestParams, self._call_tool)
        self._tasks.register(self.mcp)

    @asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncGenerator[dict[str, Any], None]:
        async with self._subscriptions.run():
            yield {}

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        return self._input_schemas.get(name)

    async def _list_tools(
        self, _: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        if params is not None and params.cursor is not None:
            raise MCPError(code=types.INVALID_PARAMS, message="Unknown cursor: all tools are on the first page")
        return types.ListToolsResult(tools=self._catalogue)

    async def _call_tool(self, ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams) -> ToolResult:
        entry = self._tools.entries.get(params.name)
        if entry is None:
            hint = did_you_mean(params.name, self._tools.entries)
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name[:64]}{hint}")
        caller = caller_of(ctx)
        with nullcontext() if caller.exchange is None else caller.exchange.handled():
            try:
                arguments = parse_arguments(entry.arguments, params.arguments)
                may_be_task = self._tasks.may_become(ctx, arguments)
                if may_be_task:
                    arguments = arguments.model_copy(update={"yield_seconds": TASK_AFTER_SECONDS})
                view, wishes = await entry.run(ctx, caller, arguments)
                if may_be_task and isinstance(view, ExecutionView) and not view.execution.is_terminal:
                    return self._tasks.created(view.execution)
                return await self._reply(params.name, caller, view, wishes)
            except SandboxError as error:
                if isinstance(error, InfrastructureError):
                    _log.warning("Tool call failed", tool=params.name, code=error.code, problem=str(error))
                return self._replies.failure(params.name, error_fields(error))
            except Exception:  # noqa: BLE001  # the outermost handler: callers learn nothing of the inside
                _log.exception("Tool call crashed", tool=params.name)
                return self._replies.failure(params.name, internal_error_fields())

    async def _reply(self, tool: str, caller: Caller, view: View, wishes: Wishes) -> ToolResult:
        """Return the result, with less output where its way to the client has not room for all."""
        if isinstance(view, ExecutionView):
            if caller.exchange is None:
                shown = _EVENT_BYTES * (len(view.head) + len(view.tail))
                if _LARGEST_GROWTH * view.output_bytes + shown > LARGEST_LINE_BYTES:
                    return await self._fitting(tool, caller, view, wishes, LARGEST_LINE_BYTES)
            elif caller.exchange.streaming:
                return await self._fitting(tool, caller, view, wishes, LARGEST_EVENT_BYTES)
            else:
                while (room := fitting_bytes(view, wishes)) is not None:
                    view = await self._tools.shrink(caller, view, room)
        return self._replies.reply(tool, view, wishes)

    async def _task_result(self, principal: Principal, execution_id: ExecutionId) -> ToolResult:
        caller = Caller(principal)
        view = await self._tools.ends(caller, execution_id, self._default_bytes)
        return await self._fitting("execute_code", caller, view, self._default_wishes, LARGEST_EVENT_BYTES)

    async def _fitting(
        self, tool: str, caller: Caller, view: ExecutionView, wishes: Wishes, largest_bytes: int
    ) -> ToolResult:
        result = self._replies.reply(tool, view, wishes)
        while view.output_bytes > 1:
            size = len(json.dumps(result))
            if size <= largest_bytes:
                break
            room = int(view.output_bytes * largest_bytes / size * 0.9)
            view = await self._tools.shrink(caller, view, max(1, room))
            result = self._replies.reply(tool, view, wishes)
        return result
