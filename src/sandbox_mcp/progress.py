"""Progress notifications: the newest output of a waited call, rate-limited, and never in the way of the run."""

from __future__ import annotations

from typing import Any

import anyio
from mcp.server.context import ServerRequestContext

from sandbox_core.application.log_view import LogEnds
from sandbox_core.application.output_log import character_start
from sandbox_core.application.service import ExecutionService
from sandbox_core.domain.errors import ExecutionNotFound
from sandbox_core.domain.ids import ExecutionId, Principal

INTERVAL_SECONDS = 0.5
LARGEST_MESSAGE_BYTES = 2048
SEND_SECONDS = 5.0
"""How long one notification may wait for a client that does not read; after that it is dropped."""


def wants_progress(ctx: ServerRequestContext[Any, Any]) -> bool:
    """True when the call carries a progress token (MCP, section Progress)."""
    return ctx.meta is not None and ctx.meta.get("progress_token") is not None


async def report_progress(
    ctx: ServerRequestContext[Any, Any], service: ExecutionService, principal: Principal, execution_id: ExecutionId
) -> None:
    """Send the newest output, at most 2 KiB, whenever there is some, at most twice a second; until cancelled.

    `progress` is the number of the newest event, so it always grows.
    """
    seen = 0
    while True:
        try:
            await service.wait(principal, execution_id, after=seen)
            ends = await service.read_ends(principal, execution_id, after=seen, max_bytes=2 * LARGEST_MESSAGE_BYTES)
        except ExecutionNotFound:
            return
        if ends.last_seq > seen:
            seen = ends.last_seq
            if text := _newest_text(ends):
                with anyio.move_on_after(SEND_SECONDS):
                    await ctx.session.report_progress(float(seen), message=text)
        if ends.execution.is_terminal:
            return
        await anyio.sleep(INTERVAL_SECONDS)


def _newest_text(ends: LogEnds) -> str:
    data = b"".join(event.data for event in (ends.tail or ends.head) if event.kind.is_output)
    if len(data) > LARGEST_MESSAGE_BYTES:
        data = data[character_start(data, len(data) - LARGEST_MESSAGE_BYTES) :]
    return data.decode("utf-8", "replace")
