"""What happens to an execution when the call that waits for it ends before it does.

| era | the connection closes | `notifications/cancelled` |
| --- | --- | --- |
| 2026-07-28 over HTTP | is the cancellation (the SDK cancels the handler) | is ignored |
| older, over HTTP | means nothing, unless `on_disconnect="cancel"` was asked | is the cancellation |
| stdio | ends the server | is the cancellation |

A cancellation ends the execution, unless `on_disconnect="detach"` was asked.
"""

from __future__ import annotations

from typing import Any, Literal

import anyio
from mcp.server.context import ServerRequestContext

from sandbox_adapters.logging import get_logger
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import SandboxError
from sandbox_core.domain.ids import ExecutionId
from sandbox_mcp.caller import Caller, Exchange
from sandbox_mcp.progress import report_progress, wants_progress

OnDisconnect = Literal["cancel", "detach"]
CANCEL_SECONDS = 5.0
"""Bound on passing a cancellation on; the execution's own timeout ends it if that fails."""

_log = get_logger(__name__)


async def wait_with_caller(
    ctx: ServerRequestContext[Any, Any],
    service: ExecutionService,
    caller: Caller,
    execution_id: ExecutionId,
    *,
    on_disconnect: OnDisconnect | None,
    yield_seconds: float | None,
) -> None:
    """Wait until the execution has ended or `yield_seconds` are over, reporting progress when that was asked.

    When the call is cancelled meanwhile, the execution is treated as the table at the head of this module says.
    """
    watched = caller.exchange if on_disconnect == "cancel" and not caller.is_modern else None
    try:
        if watched is None and not wants_progress(ctx):
            await service.wait(caller.principal, execution_id, until_terminal=True, timeout_seconds=yield_seconds)
        else:
            await _wait_with_company(ctx, service, caller, execution_id, watched, yield_seconds)
    except anyio.get_cancelled_exc_class():
        if on_disconnect != "detach":
            await _cancel(service, caller, execution_id)
        raise


async def _wait_with_company(
    ctx: ServerRequestContext[Any, Any],
    service: ExecutionService,
    caller: Caller,
    execution_id: ExecutionId,
    watched: Exchange | None,
    yield_seconds: float | None,
) -> None:
    """Wait beside a task that reports progress and one that watches an older client's connection."""
    failure: SandboxError | None = None
    async with anyio.create_task_group() as company:
        if wants_progress(ctx):
            company.start_soon(_report_quietly, ctx, service, caller, execution_id)
        if watched is not None:
            company.start_soon(_cancel_on_disconnect, watched, service, caller, execution_id)
        try:
            await service.wait(caller.principal, execution_id, until_terminal=True, timeout_seconds=yield_seconds)
        except SandboxError as error:  # raised again below, outside the task group that would wrap it
            failure = error
        company.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _report_quietly(
    ctx: ServerRequestContext[Any, Any], service: ExecutionService, caller: Caller, execution_id: ExecutionId
) -> None:
    try:
        await report_progress(ctx, service, caller.principal, execution_id)
    except Exception:  # noqa: BLE001  # news about a run must not end the wait for it
        _log.warning("Progress could not be reported", execution_id=execution_id, exc_info=True)


async def _cancel_on_disconnect(
    exchange: Exchange, service: ExecutionService, caller: Caller, execution_id: ExecutionId
) -> None:
    await exchange.disconnected.wait()
    await _cancel(service, caller, execution_id)


async def _cancel(service: ExecutionService, caller: Caller, execution_id: ExecutionId) -> None:
    with anyio.move_on_after(CANCEL_SECONDS, shield=True) as bound:
        try:
            await service.cancel(caller.principal, execution_id)
        except SandboxError as error:
            _log.warning("A cancelled execution could not be ended", execution_id=execution_id, problem=str(error))
    if bound.cancelled_caught:
        _log.warning("Ending a cancelled execution took too long", execution_id=execution_id)
