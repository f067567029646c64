"""Ctrl-C at each moment of a `sandbox run` whose server has stopped answering: scripted runs, real signals."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest

from sandbox_core.application.service import Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_mcp import cli_signals
from sandbox_mcp.cli_output import Output
from sandbox_mcp.cli_run import Runs, _run

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)
COMMAND = Command(shell="x")
PATIENCE_SECONDS = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class HangingRuns:
    """Runs that answer no call from a named one on."""

    def __init__(self, hangs_at: str) -> None:
        self._hangs_at = hangs_at
        self._hangs = False
        self.reached = anyio.Event()
        self.cancels: list[bool] = []
        self.cancelled = anyio.Event()

    async def submit(self, _: Submission) -> Execution:
        """Accept it."""
        await self.answer("submit")
        return Execution(ExecutionId("e"), LOCAL_PRINCIPAL, None, COMMAND, ExecutionPolicy(), START)

    async def get(self, execution_id: ExecutionId) -> Execution:
        """Know nothing of it."""
        raise AssertionError(execution_id)

    async def follow(self, _: ExecutionId) -> AsyncGenerator[OutputEvent, None]:
        """Have nothing to tell."""
        await self.answer("follow")
        yield OutputEvent(1, EventKind.READY, START, b"never")

    async def cancel(self, _: ExecutionId, *, force: bool) -> object:
        """Take note."""
        self.cancels.append(force)
        self.cancelled.set()
        await self.answer("cancel")
        return None

    async def send_stdin(self, _: ExecutionId, data: bytes, *, end: bool) -> None:
        """Take none."""
        raise AssertionError(data, end)

    async def answer(self, call: str) -> None:
        """Answer, or not."""
        self._hangs = self._hangs or call == self._hangs_at
        if self._hangs:
            self.reached.set()
            await anyio.sleep_forever()


@asynccontextmanager
async def opened(runs: HangingRuns) -> AsyncIterator[Runs]:
    await runs.answer("open")
    yield runs


async def exit_code_of(runs: HangingRuns) -> int:
    return await _run(opened(runs), Submission(COMMAND), Output(json_lines=True), "nobody answered")


async def test_while_it_connects_one_signal_is_enough(capfd: pytest.CaptureFixture[str]) -> None:
    runs = HangingRuns("open")
    async with anyio.create_task_group() as tasks:

        async def interrupt() -> None:
            await runs.reached.wait()
            signal.raise_signal(signal.SIGINT)

        tasks.start_soon(interrupt)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await exit_code_of(runs) == 130
    assert capfd.readouterr() == ("", "")  # nothing was asked for yet


async def test_while_it_submits_the_second_one_is_enough(capfd: pytest.CaptureFixture[str]) -> None:
    runs = HangingRuns("submit")
    async with anyio.create_task_group() as tasks:

        async def interrupt() -> None:
            await runs.reached.wait()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)

        tasks.start_soon(interrupt)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await exit_code_of(runs) == 143
    assert capfd.readouterr() == ("", "sandbox: nobody answered\n")


async def test_while_it_runs_the_second_one_waits_for_an_answer_no_longer_than_its_bound(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_signals, "LEAVE_SECONDS", 0.01)
    runs = HangingRuns("follow")
    async with anyio.create_task_group() as tasks:

        async def interrupt() -> None:
            await runs.reached.wait()
            signal.raise_signal(signal.SIGINT)
            await runs.cancelled.wait()
            signal.raise_signal(signal.SIGINT)

        tasks.start_soon(interrupt)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await exit_code_of(runs) == 130
    assert runs.cancels == [False, True]
    assert capfd.readouterr() == ("", "sandbox: nobody answered\n")
