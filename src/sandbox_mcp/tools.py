"""The eight tools: what each one does with checked arguments. Words and shapes are elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.server.context import ServerRequestContext

from sandbox_adapters.capabilities import Capabilities
from sandbox_adapters.submission import make_submission
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, parse_execution_id, parse_list_position, parse_session_id
from sandbox_core.domain.status import ExecutionStatus
from sandbox_mcp.arguments import (
    Arguments,
    CancelArguments,
    CapabilitiesArguments,
    ExecuteArguments,
    ExecuteAsyncArguments,
    ListArguments,
    OutputArguments,
    SendStdinArguments,
    StatusArguments,
)
from sandbox_mcp.caller import Caller
from sandbox_mcp.large_answers import LargeAnswers
from sandbox_mcp.lifetime import wait_with_caller
from sandbox_mcp.replies import Wishes
from sandbox_mcp.views import (
    CancelView,
    CapabilitiesView,
    Cursor,
    ExecutionView,
    InputView,
    ListView,
    StatusView,
    View,
    parse_cursor,
    view_of_ends,
    view_of_page,
)

CANCEL_SHOWN_SECONDS = 1.0
"""How long cancel_execution waits for the end, so that its reply can show it."""

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """A tool as the server dispatches it."""

    arguments: type[Arguments]
    run: Callable[[Context, Caller, Any], Awaitable[tuple[View, Wishes]]]


class Tools:
    """Runs the tools on a service.

    Args:
        capabilities: what the back can enforce.
        default_bytes: output in a reply unless the caller says otherwise, bytes.
    """

    def __init__(
        self,
        service: ExecutionService,
        *,
        capabilities: Capabilities,
        default_bytes: int,
        always_events: bool = False,
    ) -> None:
        self._service = service
        self._capabilities = capabilities
        self._default_bytes = default_bytes
        self._always_events = always_events
        self._large = LargeAnswers()
        self.entries = {
            "execute_code": ToolEntry(ExecuteArguments, self._execute),
            "execute_code_async": ToolEntry(ExecuteAsyncArguments, self._execute_async),
            "get_execution_output": ToolEntry(OutputArguments, self._output),
            "get_execution_status": ToolEntry(StatusArguments, self._status),
            "list_executions": ToolEntry(ListArguments, self._list),
            "send_stdin": ToolEntry(SendStdinArguments, self._send_stdin),
            "cancel_execution": ToolEntry(CancelArguments, self._cancel),
            "get_capabilities": ToolEntry(CapabilitiesArguments, self._describe),
        }

    async def _execute(self, ctx: Context, caller: Caller, args: ExecuteArguments) -> tuple[View, Wishes]:
        wishes = Wishes(events=args.include_events or self._always_events)
        execution = await self._submit(caller, args)
        if not args.wait_for_completion:
            return ExecutionView(execution, last_event_id="0"), wishes
        await wait_with_caller(
            ctx,
            self._service,
            caller,
            execution.id,
            on_disconnect=args.on_disconnect or ("detach" if args.idempotency_key else None),
            yield_seconds=args.yield_seconds,
        )
        return await self.ends(caller, execution.id, args.max_bytes or self._default_bytes), wishes

    async def _execute_async(self, _: Context, caller: Caller, args: ExecuteAsyncArguments) -> tuple[View, Wishes]:
        return ExecutionView(await self._submit(caller, args), last_event_id="0"), Wishes()

    async def _output(self, _: Context, caller: Caller, args: OutputArguments) -> tuple[View, Wishes]:
        execution_id = parse_execution_id(args.execution_id)
        cursor = parse_cursor(args.last_event_id)
        if args.wait:
            await self._service.wait(
                caller.principal, execution_id, until_terminal=True, timeout_seconds=args.wait_seconds
            )
        elif args.wait_seconds and not cursor.skip:
            await self._service.wait(
                caller.principal, execution_id, after=cursor.after, timeout_seconds=args.wait_seconds
            )
        wishes = Wishes(
            events=args.include_events or self._always_events, text=args.include_text, encoding=args.encoding
        )
        return await self._page(caller, execution_id, cursor, args.max_bytes or self._default_bytes), wishes

    async def shrink(self, caller: Caller, view: ExecutionView, max_bytes: int) -> ExecutionView:
        """Return the same part of the same log again, with less output."""
        if view.is_page:
            return await self._page(caller, view.execution.id, view.start, max_bytes)
        return await self.ends(caller, view.execution.id, max_bytes)

    async def ends(self, caller: Caller, execution_id: ExecutionId, max_bytes: int) -> ExecutionView:
        """Return an execution with both ends of its output."""
        await self._large.enter(caller, max_bytes)
        return view_of_ends(await self._service.read_ends(caller.principal, execution_id, max_bytes=max_bytes))

    async def _page(self, caller: Caller, execution_id: ExecutionId, cursor: Cursor, max_bytes: int) -> ExecutionView:
        await self._large.enter(caller, max_bytes)
        page = await self._service.read(
            caller.principal, execution_id, after=cursor.after, max_bytes=max_bytes + cursor.skip
        )
        return view_of_page(page, cursor, max_bytes)

    async def _status(self, _: Context, caller: Caller, args: StatusArguments) -> tuple[View, Wishes]:
        execution_id = parse_execution_id(args.execution_id)
        page = await self._service.read(caller.principal, execution_id, max_events=1, max_bytes=1)
        return StatusView(page.execution, str(page.last_seq)), Wishes()

    async def _list(self, _: Context, caller: Caller, args: ListArguments) -> tuple[View, Wishes]:
        page = await self._service.list_page(
            caller.principal,
            session_id=None if args.session_id is None else parse_session_id(args.session_id),
            statuses=_statuses(args.status),
            limit=args.limit,
            before=None if args.before is None else parse_list_position(args.before),
        )
        return ListView(page), Wishes()

    async def _send_stdin(self, _: Context, caller: Caller, args: SendStdinArguments) -> tuple[View, Wishes]:
        execution_id = parse_execution_id(args.execution_id)
        data = _input(args)
        await self._service.send_input(caller.principal, execution_id, data, end=args.end)
        return InputView(execution_id, len(data), args.end), Wishes()

    async def _cancel(self, _: Context, caller: Caller, args: CancelArguments) -> tuple[View, Wishes]:
        execution_id = parse_execution_id(args.execution_id)
        was_running = await self._service.cancel(caller.principal, execution_id, force=args.force)
        # Also when it had ended: its process may be gone and the word of it not stored yet.
        await self._service.wait(
            caller.principal, execution_id, until_terminal=True, timeout_seconds=CANCEL_SHOWN_SECONDS
        )
        return CancelView(await self._service.get(caller.principal, execution_id), was_running), Wishes()

    async def _describe(self, _: Context, __: Caller, ___: CapabilitiesArguments) -> tuple[View, Wishes]:
        return CapabilitiesView(self._capabilities), Wishes()

    async def _submit(self, caller: Caller, args: ExecuteAsyncArguments) -> Execution:
        submission = make_submission(
            args.command,
            timeout_seconds=args.timeout_seconds,
            working_directory=args.working_directory,
            environment=args.environment,
            stdin=args.stdin or "",
            interactive=args.interactive,
            policy=args.sandbox_config,
            session_id=caller.session(args.session_id),
            idempotency_key=args.idempotency_key,
            retry_safe=args.retry_safe,
            labels=args.labels,
        )
        # Shielded: a call that is cancelled half-way would leave an execution that nobody knows of. The wait after it
        # notices the cancellation, and knows what to end.
        with anyio.CancelScope(shield=True):
            execution = await self._service.submit(caller.principal, submission)
        return execution  # noqa: RET504  # inside the scope, mypy sees a path that returns nothing


def _input(args: SendStdinArguments) -> bytes:
    text = args.input_data
    if args.encoding == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise InvalidArgument("input_data", "is not base64") from None
    if not text.endswith("\n") and (text or not args.end):
        text += "\n"
    return text.encode()


def _statuses(given: ExecutionStatus | list[ExecutionStatus] | None) -> frozenset[ExecutionStatus]:
    if given is None:
        return frozenset()
    return frozenset({given} if isinstance(given, ExecutionStatus) else given)
