"""Tools: what they ask of the service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox_adapters.capabilities import Capabilities
from sandbox_core.domain.command import Command
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, new_execution_id
from sandbox_core.domain.outcome import Outcome, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_mcp.arguments import CancelArguments
from sandbox_mcp.caller import Caller
from sandbox_mcp.tools import Tools
from sandbox_mcp.views import CancelView

CAPABILITIES = Capabilities(
    server_version="1",
    runner="r",
    runner_version="2",
    isolated=True,
    network="none",
    ceiling=ExecutionPolicy(),
    defaults=ExecutionPolicy(),
)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class EndingService:
    """A service with one execution whose process has ended, and whose end is stored once somebody waits for it."""

    def __init__(self) -> None:
        pending = Execution(
            id=new_execution_id(NOW),
            principal=LOCAL_PRINCIPAL,
            session_id=None,
            command=Command(shell="true"),
            policy=ExecutionPolicy(),
            created_at=NOW,
        )
        self.execution = pending.apply(pending.start(NodeId("node"), NOW))

    async def cancel(self, *_: Any, **__: Any) -> bool:
        return False

    async def wait(self, *_: Any, **__: Any) -> bool:
        outcome = Outcome(reason=TerminationReason.EXITED, exit_code=0)
        self.execution = self.execution.apply(self.execution.finish(outcome, NOW))
        return True

    async def get(self, *_: Any) -> Execution:
        return self.execution


@pytest.mark.anyio
async def test_cancel_never_shows_as_running_what_it_says_had_ended() -> None:
    service: Any = EndingService()
    entry = Tools(service, capabilities=CAPABILITIES, default_bytes=1).entries["cancel_execution"]
    context: Any = None
    caller = Caller(LOCAL_PRINCIPAL)
    view, _ = await entry.run(context, caller, CancelArguments(execution_id=service.execution.id))
    assert isinstance(view, CancelView)
    assert (view.was_running, view.execution.is_terminal) == (False, True)
