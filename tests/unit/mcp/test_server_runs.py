"""`sandbox run --server` while the fleet is full, or loses what it runs: scripted answers of a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import pytest
from mcp import Client, MCPError
from mcp_types import CallToolResult

from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import ExecutionFinished, OwnerUnreachable, SandboxError
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId, NodeId
from sandbox_core.domain.outcome import Outcome, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_mcp import server_runs
from sandbox_mcp.cli_output import Output
from sandbox_mcp.cli_run import EXIT_LOST, Runs, _run
from sandbox_mcp.server_runs import ServerRefused, ServerRuns, ServerUnusable

START = datetime(2026, 1, 1, tzinfo=UTC)
ID = ExecutionId("e")
FULL = {"code": "server_full", "message": "The server is full.", "retry_after_seconds": 10}
FINISHED = {"code": "execution_finished", "message": "It has ended.", "status": "failed"}
AWAY = {"code": "store_unavailable", "message": "Redis is away."}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Answers:
    """A client whose calls are answered in turn: with an error's fields, None for success, or by no answer at all."""

    def __init__(self, *answers: Mapping[str, Any] | Exception | None) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def call_tool(self, _: str, arguments: dict[str, Any]) -> CallToolResult:
        """Answer the next call."""
        self.asked.append(arguments)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        content = {} if answer is None else {"error": answer}
        return CallToolResult(content=[], structured_content=content, is_error=answer is not None)


def runs_on(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> ServerRuns:
    monkeypatch.setattr(server_runs, "_PAUSE_SECONDS", 0.0)
    return ServerRuns(cast("Client", answers), "http://localhost/mcp")


@pytest.mark.anyio
async def test_input_waits_with_the_execution_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(FULL, FULL, None)
    await runs_on(answers, monkeypatch).send_stdin(ID, b"data")
    assert [asked["input_data"] for asked in answers.asked] == ["ZGF0YQ=="] * 3


@pytest.mark.anyio
async def test_what_never_started_takes_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutionFinished):
        await runs_on(Answers(FULL, FINISHED), monkeypatch).send_stdin(ID, b"data")


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [AWAY, MCPError(code=-32000, message="connection closed")])
async def test_only_an_end_without_bytes_is_sent_twice(
    monkeypatch: pytest.MonkeyPatch, failure: Mapping[str, Any] | Exception
) -> None:
    again, once = Answers(failure, None), Answers(failure, None)
    await runs_on(again, monkeypatch).send_stdin(ID, b"", end=True)
    assert len(again.asked) == 2
    with pytest.raises((ServerRefused, ServerUnusable)):
        await runs_on(once, monkeypatch).send_stdin(ID, b"last", end=True)
    assert len(once.asked) == 1


class Ending:
    """Runs that end in a given way once their input could not be sent."""

    def __init__(self, reason: TerminationReason, failure: SandboxError) -> None:
        pending = Execution(ID, LOCAL_PRINCIPAL, None, Command(shell="x"), ExecutionPolicy(), START)
        running = pending.apply(pending.start(NodeId("n"), START))
        code = 7 if reason is TerminationReason.EXITED else None
        self._ended = running.apply(running.finish(Outcome(reason, code), START))
        self._failure = failure
        self._tried = anyio.Event()

    async def submit(self, _: Submission) -> Execution:
        """Start it."""
        return self._ended

    async def get(self, _: ExecutionId) -> Execution:
        """Return how it ended."""
        return self._ended

    async def follow(self, _: ExecutionId) -> AsyncGenerator[OutputEvent, None]:
        """Tell the end."""
        await self._tried.wait()
        yield OutputEvent(1, EventKind.ERROR, START, b"ended", {"message": "ended", "termination_reason": "lost"})

    async def cancel(self, _: ExecutionId, *, force: bool) -> object:
        """It ends by itself."""
        return force

    async def send_stdin(self, _: ExecutionId, data: bytes, *, end: bool) -> None:
        """Fail."""
        self._tried.set()
        raise self._failure


@asynccontextmanager
async def opened(runs: Runs) -> AsyncIterator[Runs]:
    yield runs


@pytest.mark.anyio
async def test_input_that_a_dead_worker_did_not_get_hides_no_loss() -> None:
    submission, output = Submission(Command(shell="x", interactive=True)), Output(json_lines=True, verbose=False)
    gone = OwnerUnreachable(ID)
    assert await _run(opened(Ending(TerminationReason.LOST, gone)), submission, output) == EXIT_LOST
    with pytest.raises(OwnerUnreachable):
        await _run(opened(Ending(TerminationReason.EXITED, gone)), submission, output)


class WaitingForInput(Ending):
    """A program that reads to the end of its input, and ends before only when it is cancelled."""

    def __init__(self, failure: SandboxError) -> None:
        super().__init__(TerminationReason.CANCELLED, failure)
        self._cancelled = anyio.Event()

    async def follow(self, execution_id: ExecutionId) -> AsyncGenerator[OutputEvent, None]:
        """Tell the end, when there is one."""
        await self._cancelled.wait()
        async for event in super().follow(execution_id):
            yield event

    async def cancel(self, _: ExecutionId, *, force: bool) -> object:
        """End it."""
        self._cancelled.set()
        return force


@pytest.mark.anyio
async def test_a_command_that_waits_for_input_that_was_lost_on_the_way_is_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    submission, output = Submission(Command(shell="x", interactive=True)), Output(json_lines=True, verbose=False)
    with anyio.fail_after(30), pytest.raises(ServerUnusable, match="gone"):
        await _run(opened(WaitingForInput(ServerUnusable("gone"))), submission, output)
    assert "Input could not be passed on to the command" in capfd.readouterr().err
