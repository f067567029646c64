"""The Tasks extension, `io.modelcontextprotocol/tasks` (SEP-2663): a call that takes long becomes a task.

A task is an execution: the same id, the same owner, the same life, so any replica answers for it and nothing is stored
beside it. Only requests of protocol 2026-07-28 that declare the extension see it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Literal

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from starlette.requests import Request

from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, SandboxError
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, Principal, parse_execution_id
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp.arguments import Arguments, ExecuteArguments
from sandbox_mcp.caller import current_principal
from sandbox_mcp.progress import wants_progress
from sandbox_mcp.protocol_errors import is_older, protocol_error
from sandbox_mcp.replies import ToolResult
from sandbox_mcp.words import state_words

EXTENSION: Final = "io.modelcontextprotocol/tasks"

TASK_AFTER_SECONDS: Final = 1.0
"""What ends within this is answered as ever; what runs on becomes a task."""

POLL_INTERVAL_MS: Final = 1000

Context = ServerRequestContext[Any, Any]
ResultOf = Callable[[Principal, ExecutionId], Awaitable[ToolResult]]
"""Returns the result that `execute_code` would give now."""


class TaskParams(types.RequestParams):
    """Parameters of tasks/get and tasks/cancel."""

    task_id: str


class UpdateTaskParams(TaskParams):
    """Parameters of tasks/update."""

    input_responses: dict[str, Any]


class Tasks:
    """Answers `tasks/get`, `tasks/update` and `tasks/cancel`.

    Args:
        result_of: see ResultOf.
        ttl_seconds: how long an execution is kept after its last use.
    """

    def __init__(self, service: ExecutionService, *, result_of: ResultOf, ttl_seconds: float) -> None:
        self._service = service
        self._result_of = result_of
        self._ttl = timedelta(seconds=ttl_seconds)

    def register(self, server: Server[Any]) -> None:
        """Add the methods to a server."""
        server.add_request_handler("tasks/get", TaskParams, self._get)
        server.add_request_handler("tasks/update", UpdateTaskParams, self._update)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel)

    def may_become(self, ctx: Context, arguments: Arguments) -> bool:
        """Tell whether this call may be answered with a task.

        The client must have said on this request that it knows tasks. A call that asks for what a task cannot do waits
        as ever: progress, another form of the result, a time to answer after, or to end with its connection.
        """
        return (
            isinstance(arguments, ExecuteArguments)
            and declares_tasks(ctx)
            and arguments.wait_for_completion
            and arguments.yield_seconds is None
            and arguments.max_bytes is None
            and not arguments.include_events
            and arguments.on_disconnect != "cancel"
            and not wants_progress(ctx)
        )

    def created(self, execution: Execution) -> dict[str, Any]:
        """Return the result of a call that became a task."""
        return {"resultType": "task", **self._task(execution)}

    async def detailed(self, principal: Principal, execution_id: ExecutionId) -> dict[str, Any]:
        """Return a task with its result when it has one. Raises ExecutionNotFound."""
        execution = await self._service.get(principal, execution_id)
        task = self._task(execution)
        if task["status"] == "completed":
            task["result"] = await self._result_of(principal, execution_id)
        return task

    async def state(self, principal: Principal, execution_id: ExecutionId) -> dict[str, Any] | None:
        """Return a task as `detailed` does; None when it is gone."""
        try:
            return await self.detailed(principal, execution_id)
        except ExecutionNotFound:
            return None

    async def _get(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        execution_id = _checked(ctx, params)
        try:
            return {"resultType": "complete", **await self.detailed(current_principal(), execution_id)}
        except SandboxError as error:
            raise protocol_error(error) from error

    async def _update(self, ctx: Context, params: UpdateTaskParams) -> dict[str, Any]:
        """Acknowledge. No task here ever asks for input, and answers that were not asked for are to be ignored."""
        execution_id = _checked(ctx, params)
        try:
            await self._service.get(current_principal(), execution_id)
        except SandboxError as error:
            raise protocol_error(error) from error
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        execution_id = _checked(ctx, params)
        try:
            await self._service.cancel(current_principal(), execution_id)
        except SandboxError as error:
            raise protocol_error(error) from error
        return {"resultType": "complete"}

    def _task(self, execution: Execution) -> dict[str, Any]:
        changed = execution.ended_at or execution.started_at or execution.created_at
        # One that runs never expires. One that has ended is kept for the time to live after each use.
        kept = changed - execution.created_at + self._ttl if execution.is_terminal else None
        return {
            "taskId": execution.id,
            "status": _status(execution),
            "statusMessage": state_words(execution),
            "createdAt": execution.created_at.isoformat(),
            "lastUpdatedAt": changed.isoformat(),
            "ttlMs": None if kept is None else round(kept.total_seconds() * 1000),
            "pollIntervalMs": POLL_INTERVAL_MS,
        }


def declares_tasks(ctx: Context) -> bool:
    """True when this request says that its client knows tasks."""
    capabilities = ctx.session.client_capabilities
    extensions = None if capabilities is None else capabilities.extensions
    return extensions is not None and EXTENSION in extensions and not is_older(ctx)


def require_tasks(ctx: Context) -> None:
    """Refuse what only a client that knows tasks may ask for."""
    if not declares_tasks(ctx):
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "Missing required client capability", needed)


def _checked(ctx: Context, params: TaskParams) -> ExecutionId:
    """Return the id that a request of this extension names."""
    if is_older(ctx):
        raise MCPError(types.METHOD_NOT_FOUND, "Method not found", ctx.method)
    require_tasks(ctx)
    name = ctx.request.headers.get(MCP_NAME_HEADER) if isinstance(ctx.request, Request) else None
    if name is not None and decode_header_value(name) != params.task_id:
        raise MCPError(types.HEADER_MISMATCH, f"{MCP_NAME_HEADER} does not match the request's taskId")
    try:
        return parse_execution_id(params.task_id)
    except InvalidArgument:
        raise protocol_error(ExecutionNotFound(params.task_id[:64])) from None


def _status(execution: Execution) -> Literal["working", "completed", "cancelled"]:
    """`failed` is for errors of the protocol alone; how a command went is in the result."""
    if not execution.is_terminal:
        return "working"
    return "cancelled" if execution.status is ExecutionStatus.CANCELLED else "completed"
