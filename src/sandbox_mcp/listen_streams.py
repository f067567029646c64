"""`subscriptions/listen` of 2026-07-28 clients: one request whose answer is a stream of what they asked to hear.

What is honoured are the caller's own executions, as resources and as tasks; everything else is left out of the
acknowledgement. The stream ends, with a result, when nothing more can come: every execution on it has ended, or the
server drains. There is no replay: whoever listens again looks first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp.shared.exceptions import MCPError

from sandbox_adapters.logging import get_logger
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound, InvalidArgument, SandboxError, ServerDraining
from sandbox_core.domain.ids import ExecutionId, Principal, parse_execution_id
from sandbox_mcp.caller import current_principal
from sandbox_mcp.protocol_errors import protocol_error
from sandbox_mcp.resources import ResourceUri
from sandbox_mcp.watching import Outbox, Seen, WatchPlaces, look, watch

MAX_PER_STREAM: Final = 64
"""Resources and tasks on one stream."""

SEND_SECONDS: Final = 30.0
"""How long a notification may wait for a client that does not read; after that the stream ends."""

CLOSE_SECONDS: Final = 1.0
"""How long a drained stream may take to say what it still has to."""

TASK_IDS: Final = "taskIds"
"""The field that the Tasks extension adds to the filter."""

_log = get_logger(__name__)

Context = ServerRequestContext[Any, Any]
TaskState = Callable[[Principal, ExecutionId], Awaitable[dict[str, Any] | None]]
"""Returns a task as it is now; None when it is gone."""


class TaskNotification(types.Notification[dict[str, Any], Literal["notifications/tasks"]]):
    """The whole state of a task, as tasks/get gives it (SEP-2663)."""

    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that a client wants to hear of, as it named it."""

    execution_id: ExecutionId
    name: str
    is_task: bool = False


@dataclass(slots=True, eq=False)
class _Stream:
    outbox: Outbox[Topic] = field(default_factory=lambda: Outbox[Topic]())
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def close(self) -> None:
        self.outbox.close()
        self.scope.deadline = anyio.current_time() + CLOSE_SECONDS


class ListenStreams:
    """Answers `subscriptions/listen`.

    Args:
        places: shared with the subscriptions of older clients.
        check_tasks: raises when this client may not ask for tasks.
        task_state: see TaskState.
    """

    def __init__(
        self,
        service: ExecutionService,
        places: WatchPlaces,
        *,
        check_tasks: Callable[[Context], None],
        task_state: TaskState,
    ) -> None:
        self._service = service
        self._places = places
        self._check_tasks = check_tasks
        self._task_state = task_state
        self._open: set[_Stream] = set()
        self._closed = False

    def close(self) -> None:
        """End every stream in good order, and open no more: clients listen again at another replica."""
        self._closed = True
        for stream in self._open:
            stream.close()

    async def listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve one stream."""
        if ctx.request_id is None:
            raise MCPError(types.INVALID_REQUEST, "subscriptions/listen needs a request id")
        wanted = self._wanted(ctx, params.notifications)
        principal = current_principal()
        try:
            if self._closed:
                raise ServerDraining
            with self._places.held(principal, max(1, len(wanted))):
                honoured = await self._looked_at(principal, wanted)
                await self._serve(ctx, principal, honoured)
        except SandboxError as error:
            raise protocol_error(error) from error
        return types.SubscriptionsListenResult(_meta={SUBSCRIPTION_ID_META_KEY: ctx.request_id})

    def _wanted(self, ctx: Context, asked: types.SubscriptionFilter) -> list[Topic]:
        uris = dict.fromkeys(asked.resource_subscriptions or ())
        tasks = dict.fromkeys(_task_ids(asked.model_extra or {}))
        if (asked.model_extra or {}).get(TASK_IDS) is not None:
            self._check_tasks(ctx)
        if len(uris) + len(tasks) > MAX_PER_STREAM:
            raise MCPError(types.INVALID_PARAMS, f"A stream may have {MAX_PER_STREAM} resources and tasks")
        topics = []
        for text in uris:
            if (uri := ResourceUri.parse(text)) is not None:
                topics.append(Topic(uri.execution_id, text))
        for text in tasks:
            try:
                topics.append(Topic(parse_execution_id(text), text, is_task=True))
            except InvalidArgument:
                continue
        return topics

    async def _looked_at(self, principal: Principal, wanted: list[Topic]) -> dict[Topic, Seen]:
        """Return what is the caller's own, as it is now. Unknown and foreign are both left out."""
        known: dict[ExecutionId, Seen | None] = {}
        for topic in wanted:
            if topic.execution_id not in known:
                try:
                    known[topic.execution_id] = await look(self._service, principal, topic.execution_id)
                except ExecutionNotFound:
                    known[topic.execution_id] = None
        return {topic: seen for topic in wanted if (seen := known[topic.execution_id]) is not None}

    async def _serve(self, ctx: Context, principal: Principal, topics: Mapping[Topic, Seen]) -> None:
        stream = _Stream()
        self._open.add(stream)
        if self._closed:
            stream.close()
        try:
            with stream.scope:
                await _acknowledge(ctx, topics)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch_all, stream, principal, topics)
                    while (topic := await stream.outbox.take()) is not None:
                        if not await self._send(ctx, principal, topic):
                            break
                    tasks.cancel_scope.cancel()
        finally:
            self._open.discard(stream)

    async def _watch_all(self, stream: _Stream, principal: Principal, topics: Mapping[Topic, Seen]) -> None:
        async with anyio.create_task_group() as tasks:
            for topic, seen in topics.items():
                tasks.start_soon(self._watch, stream, principal, topic, seen)
        stream.outbox.close()

    async def _watch(self, stream: _Stream, principal: Principal, topic: Topic, seen: Seen) -> None:
        def tell() -> None:
            stream.outbox.put(topic)

        if topic.is_task and not seen.status.is_terminal:
            tell()
        try:
            await watch(self._service, principal, topic.execution_id, seen, tell, output=not topic.is_task)
        except Exception:  # noqa: BLE001  # the others on the stream go on
            _log.warning("A watch ended", execution_id=topic.execution_id, exc_info=True)

    async def _send(self, ctx: Context, principal: Principal, topic: Topic) -> bool:
        """Send the news of one topic; False when the client does not read."""
        meta = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        news: Any  # what the SDK can send is more than the notifications that it names
        if topic.is_task:
            try:
                task = await self._task_state(principal, topic.execution_id)
            except SandboxError as error:
                _log.warning("A task could not be told", execution_id=topic.execution_id, problem=str(error))
                return True
            if task is None:
                return True
            news = TaskNotification(params={**task, "_meta": meta})
        else:
            news = types.ResourceUpdatedNotification(
                params=types.ResourceUpdatedNotificationParams(uri=topic.name, _meta=meta)
            )
        with anyio.move_on_after(SEND_SECONDS) as sending:
            await ctx.session.send_notification(news, related_request_id=ctx.request_id)
        return not sending.cancelled_caught


async def _acknowledge(ctx: Context, topics: Mapping[Topic, Seen]) -> None:
    uris = [topic.name for topic in topics if not topic.is_task]
    tasks = [topic.name for topic in topics if topic.is_task]
    extra: dict[str, Any] = {TASK_IDS: tasks} if tasks else {}
    honoured = types.SubscriptionFilter(resource_subscriptions=uris or None, **extra)
    params = types.SubscriptionsAcknowledgedNotificationParams(
        notifications=honoured, _meta={SUBSCRIPTION_ID_META_KEY: ctx.request_id}
    )
    await ctx.session.send_notification(
        types.SubscriptionsAcknowledgedNotification(params=params), related_request_id=ctx.request_id
    )


def _task_ids(extra: Mapping[str, Any]) -> list[str]:
    given = extra.get(TASK_IDS) or []
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise MCPError(types.INVALID_PARAMS, f"{TASK_IDS} must be a list of strings")
    return given
