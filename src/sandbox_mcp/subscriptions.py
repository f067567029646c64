"""`resources/subscribe` of older clients: updates on the stream of their session, while there can be news.

A subscription lives with its session, in one replica, and watches what may run in any other. It ends with
`resources/unsubscribe`, with the session, and after the end of the execution was told.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import mcp_types as types
from anyio.abc import TaskGroup
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession

from sandbox_adapters.logging import get_logger
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound, SandboxError, ServerFull
from sandbox_core.domain.ids import Principal
from sandbox_mcp.caller import current_principal
from sandbox_mcp.protocol_errors import protocol_error, resource_not_found
from sandbox_mcp.resources import ResourceUri
from sandbox_mcp.watching import Outbox, Seen, WatchPlaces, look, watch

MAX_PER_SESSION: Final = 64
"""Subscriptions of one session."""

SEND_SECONDS: Final = 30.0
"""How long an update may wait for a client that does not read; after that its subscriptions end."""

_STATE_KEY: Final = "sandbox_mcp.subscriptions"
_log = get_logger(__name__)

Context = ServerRequestContext[Any, Any]


class _Session:
    """The subscriptions of one session."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.outbox: Outbox[str] = Outbox()
        self.watches: dict[str, anyio.CancelScope] = {}

    def end(self) -> None:
        """End every subscription."""
        self.scope.cancel()
        for scope in self.watches.values():
            scope.cancel()


class Subscriptions:
    """Answers `resources/subscribe` and `resources/unsubscribe`.

    Args:
        places: shared with the streams of newer clients.
    """

    def __init__(self, service: ExecutionService, places: WatchPlaces) -> None:
        self._service = service
        self._places = places
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None, None]:
        """Hold the tasks that outlive the requests that started them."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Begin to watch; a second time it changes nothing."""
        uri = ResourceUri.parse(params.uri)
        if uri is None:
            raise resource_not_found(ctx, params.uri)
        principal = current_principal()
        session = self._session(ctx)
        if str(uri) in session.watches:
            return types.EmptyResult()
        try:
            if len(session.watches) >= MAX_PER_SESSION:
                raise ServerFull(f"a session may have {MAX_PER_SESSION} subscriptions", 10)
            self._places.take(principal)
        except SandboxError as error:
            raise protocol_error(error) from error
        scope = session.watches[str(uri)] = anyio.CancelScope()
        try:
            seen = await look(self._service, principal, uri.execution_id)
            self._begin(self._watch, session, principal, uri, seen, scope)
        except BaseException as error:
            self._forget(session, principal, uri, scope)
            if isinstance(error, ExecutionNotFound):
                raise resource_not_found(ctx, params.uri) from None
            if isinstance(error, SandboxError):
                raise protocol_error(error) from error
            raise
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        """Stop watching; no error for what was not subscribed."""
        # At once, and not when the watch has ended: who subscribes again before that begins anew.
        scope = self._session(ctx).watches.pop(params.uri, None)
        if scope is not None:
            scope.cancel()
        return types.EmptyResult()

    def _session(self, ctx: Context) -> _Session:
        connection = _connection(ctx)
        session = connection.state.get(_STATE_KEY)
        if not isinstance(session, _Session) or session.scope.cancel_called:
            session = connection.state[_STATE_KEY] = _Session()
            connection.exit_stack.callback(session.end)
            self._begin(self._send, session, ctx.session)
        return session

    def _begin(self, work: Any, *arguments: Any) -> None:
        if self._tasks is None:
            raise RuntimeError("the server's lifespan has not been entered")
        self._tasks.start_soon(work, *arguments)

    def _forget(self, session: _Session, principal: Principal, uri: ResourceUri, scope: anyio.CancelScope) -> None:
        self._places.give_back(principal)
        if session.watches.get(str(uri)) is scope:
            del session.watches[str(uri)]

    async def _watch(
        self, session: _Session, principal: Principal, uri: ResourceUri, seen: Seen, scope: anyio.CancelScope
    ) -> None:
        def tell() -> None:
            session.outbox.put(str(uri))

        try:
            with scope:
                await watch(self._service, principal, uri.execution_id, seen, tell, output=True)
        except Exception:  # noqa: BLE001  # a task of the whole server: it must not end with one subscription
            _log.warning("A subscription ended", execution_id=uri.execution_id, exc_info=True)
        finally:
            self._forget(session, principal, uri, scope)

    async def _send(self, session: _Session, to: ServerSession) -> None:
        try:
            with session.scope:
                while (uri := await session.outbox.take()) is not None:
                    update = types.ResourceUpdatedNotification(params=types.ResourceUpdatedNotificationParams(uri=uri))
                    with anyio.move_on_after(SEND_SECONDS) as sending:
                        await to.send_notification(update)
                    if sending.cancelled_caught:
                        break
        except Exception:  # noqa: BLE001  # as above
            _log.warning("Updates could not be sent", exc_info=True)
        finally:
            session.end()


def _connection(ctx: Context) -> Connection:
    # The SDK gives handlers no public way to what lives as long as the session (mcp 2.3).
    return ctx.session._connection  # noqa: SLF001
