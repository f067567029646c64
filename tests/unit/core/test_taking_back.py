"""What could not be queued, or whose caller left meanwhile, is taken back: nobody knows its id."""

from __future__ import annotations

import anyio
import pytest

from sandbox_core.domain.errors import ExecutionNotFound, SandboxError, ServerFull, StoreUnavailable
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.queue import QueueItem
from sandbox_core.testing.scripted_runner import Pause, Script

from .conftest import House, OpenHouse

pytestmark = pytest.mark.anyio

SLOW = Script(steps=[Pause(1000)])


class Doubt:
    """A queue that has the item and gives no answer: by itself it says nothing, with an error it raises that."""

    def __init__(self, home: House, monkeypatch: pytest.MonkeyPatch, error: SandboxError | None = None) -> None:
        self.started = anyio.Event()
        self._home, self._error = home, error
        self._put = home.queue.put
        monkeypatch.setattr(home.queue, "put", self.put)

    async def put(self, item: QueueItem) -> None:
        await self._put(item)
        await self._home.started(1)
        self.started.set()
        if self._error is not None:
            raise self._error
        await anyio.sleep_forever()


async def _only(home: House) -> ExecutionId:
    [execution] = (await home.service.list_page(LOCAL_PRINCIPAL)).executions
    return execution.id


async def test_a_submission_that_is_cancelled_ends_what_was_started_already(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(default=SLOW) as home:
        doubt = Doubt(home, monkeypatch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(home.submit, "x")
            with anyio.fail_after(30):
                await doubt.started.wait()
            tasks.cancel_scope.cancel()
        assert (await home.ended(await _only(home))).status is ExecutionStatus.CANCELLED
        assert home.runner.running == 0


async def test_a_submission_whose_answer_was_lost_ends_what_was_started_already(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(default=SLOW) as home:
        Doubt(home, monkeypatch, StoreUnavailable("for the test"))
        with pytest.raises(StoreUnavailable):
            await home.submit("x")
        assert (await home.ended(await _only(home))).status is ExecutionStatus.CANCELLED


async def test_under_a_key_it_runs_on_for_its_caller_to_come_back_to(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(default=SLOW) as home:
        Doubt(home, monkeypatch, StoreUnavailable("for the test"))
        with pytest.raises(StoreUnavailable):
            await home.submit("x", key="k")
        await home.clock.settle()
        assert home.runner.running == 1
        assert await home.submit("x", key="k") == await _only(home)


async def test_the_caller_is_told_why_also_when_it_cannot_be_taken_back(
    house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: ExecutionId) -> None:
        raise StoreUnavailable("for the test")

    async def full(_: QueueItem) -> None:
        raise ServerFull("for the test", 1)

    async with house(default=SLOW) as home:
        monkeypatch.setattr(home.queue, "put", full)
        monkeypatch.setattr(home.store, "discard", away)
        with pytest.raises(ServerFull):
            await home.submit("x")


async def test_what_was_not_queued_is_forgotten(house: OpenHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[ExecutionId] = []

    async def away(item: QueueItem) -> None:
        put.append(item.execution_id)
        raise StoreUnavailable("for the test")

    async with house(default=SLOW) as home:
        monkeypatch.setattr(home.queue, "put", away)
        with pytest.raises(StoreUnavailable):
            await home.submit("x")
        with pytest.raises(ExecutionNotFound):
            await home.service.get(LOCAL_PRINCIPAL, put[0])
