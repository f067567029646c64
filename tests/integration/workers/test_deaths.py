"""SIGKILL of a worker at every point of an execution's life: what starts elsewhere, what is lost, what is run again.

The start of the program is counted by the program itself. Everything is checked in one fleet, since each case spends
its time waiting for a lease to lapse.
"""

from __future__ import annotations

import signal
import subprocess  # noqa: TID251  # the workers are programs
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sandbox_adapters.runners.local import LocalRunner
from sandbox_core.application.service import ExecutionService, Submission
from sandbox_core.domain.command import Command
from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.store import LogPage
from tests.integration.workers.dying_worker import Parts, Point, entered
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[3]
BOUND_SECONDS = 90
POLICY = ExecutionPolicy(resource_limits=ResourceLimits(timeout_seconds=60, queue_timeout_seconds=300))

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@dataclass(frozen=True)
class Case:
    """A point, and what is promised there: how it ends, at which attempt, after how many starts of the program."""

    point: Point
    retry_safe: bool
    reason: str
    attempt: int
    starts: int

    @property
    def label(self) -> str:
        return f"{self.point.name.lower().replace('_', '-')}{'.retry' if self.retry_safe else ''}"


class Everything:
    """A fleet of which each worker is known to offer its label."""

    async def offers(self) -> Collection[frozenset[str]]:
        return [frozenset(case.label for case in CASES)]


CASES = (
    Case(Point.BEFORE_CLAIM, retry_safe=False, reason="exited", attempt=1, starts=1),
    Case(Point.CLAIMED, retry_safe=False, reason="lost", attempt=1, starts=0),
    Case(Point.CLAIMED, retry_safe=True, reason="exited", attempt=2, starts=1),
    Case(Point.LAUNCHING, retry_safe=False, reason="lost", attempt=1, starts=0),
    Case(Point.RUNNING, retry_safe=False, reason="lost", attempt=1, starts=1),
    Case(Point.RUNNING, retry_safe=True, reason="exited", attempt=2, starts=2),
    Case(Point.ENDING, retry_safe=False, reason="lost", attempt=1, starts=1),
    Case(Point.ENDING, retry_safe=True, reason="exited", attempt=2, starts=2),
    Case(Point.ENDED, retry_safe=True, reason="exited", attempt=1, starts=1),
)


async def test_what_a_killed_worker_leaves(own_redis: RedisServer, tmp_path: Path) -> None:
    with dying_workers(own_redis.url, tmp_path) as workers:
        parts, runner = Parts(own_redis.url, "survivor"), LocalRunner()
        async with entered(parts, runner):
            service = ExecutionService(
                store=parts.store,
                queue=parts.queue,
                control=parts.control,
                clock=parts.clock,
                ceiling=POLICY,
                defaults=POLICY,
                fleet=Everything(),
            )
            ids = {case: await submit(service, case, tmp_path) for case in CASES}
            for worker in workers:
                assert await anyio.to_thread.run_sync(worker.wait, BOUND_SECONDS) == -signal.SIGKILL
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(parts.supervisor(runner, frozenset(case.label for case in CASES)).run)
                with anyio.fail_after(BOUND_SECONDS):
                    for execution_id in ids.values():
                        await service.wait(LOCAL_PRINCIPAL, execution_id, until_terminal=True)
                pages = {case: await service.read(LOCAL_PRINCIPAL, execution_id) for case, execution_id in ids.items()}
                tasks.cancel_scope.cancel()
    found = {case.label: seen(case, page, tmp_path) for case, page in pages.items()}
    assert found == {case.label: (case.reason, case.attempt, case.starts) for case in CASES}
    for case, page in pages.items():
        check_log(case, page)


@contextmanager
def dying_workers(url: str, directory: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a worker for each case."""
    started = []
    with (directory / "workers.log").open("wb") as log:
        try:
            for case in CASES:
                argv = [sys.executable, "-m", "tests.integration.workers.dying_worker", url, case.point, case.label]
                started.append(subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log))
            yield started
        finally:
            for worker in started:
                worker.kill()
                worker.wait()


async def submit(service: ExecutionService, case: Case, directory: Path) -> ExecutionId:
    """Submit a program that notes its start, prints, and ends."""
    command = Command(shell=f"echo started >> '{directory / case.label}'; echo up; sleep 0.2; echo done")
    submission = Submission(command, retry_safe=case.retry_safe, labels=frozenset({case.label}))
    return (await service.submit(LOCAL_PRINCIPAL, submission)).id


def seen(case: Case, page: LogPage, directory: Path) -> tuple[str, int, int]:
    """Return how it ended, at which attempt, and how often the program was started."""
    assert page.execution.outcome is not None
    file = directory / case.label
    starts = len(file.read_text().splitlines()) if file.exists() else 0
    return page.execution.outcome.reason.value, page.execution.attempt, starts


def check_log(case: Case, page: LogPage) -> None:
    """Numbered without holes, one terminal event and it is the last, one event between two attempts."""
    kinds = [event.kind for event in page.events]
    assert [event.seq for event in page.events] == list(range(1, page.last_seq + 1)), case
    assert [kind.is_terminal for kind in kinds] == [False] * (len(kinds) - 1) + [True], case
    assert kinds.count(EventKind.RETRY) == case.attempt - 1, case
    text = b"".join(event.data for event in page.events if event.kind is EventKind.STDOUT)
    assert text.endswith(b"up\ndone\n") or case.reason == "lost", case
    if case.point in (Point.RUNNING, Point.ENDING):
        assert text.startswith(b"up\n"), case
