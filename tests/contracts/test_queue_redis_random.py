"""RedisQueue under takers that refuse, leave and give back at random: everything comes once, nobody waits in vain."""

from __future__ import annotations

from collections import Counter
from random import Random

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sandbox_adapters.queues.redis import RedisQueue
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.ports.queue import Delivery, QueueItem, QueueStats
from sandbox_core.testing.queue_harness import item
from tests.contracts.test_queue_redis import Join, all_done, join, only_tokens_wake
from tests.redis_server import RedisServer

__all__ = ["join", "only_tokens_wake"]

BOUND_SECONDS = 60
NEEDS: list[tuple[str, ...]] = [(), (), ("gpu",), ("gpu", "large")]
OFFERS: list[frozenset[str]] = [frozenset({"gpu", "large"}), frozenset(), frozenset({"gpu"}), frozenset()]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Fleet:
    """Processes that start one execution of a session at once, and ask again wherever one was over."""

    def __init__(self, random: Random, queues: list[RedisQueue]) -> None:
        self._random = random
        self._queues = queues
        self._places: dict[tuple[str, str | None], ExecutionId] = {}
        self._is_wanted = False
        self._now, self._later = anyio.Event(), anyio.Event()
        self._takes: list[anyio.CancelScope] = []
        self.started: Counter[ExecutionId] = Counter()

    async def work(self, queue: RedisQueue, offers: frozenset[str]) -> None:
        """Take for ever."""
        while True:
            with anyio.CancelScope() as scope:
                self._takes.append(scope)
                reserved: list[QueueItem] = []
                delivery: Delivery | None = None

                async def admit(about: QueueItem, reserved: list[QueueItem] = reserved) -> bool:
                    is_free = self._places.setdefault(_key(about), about.execution_id) == about.execution_id
                    if is_free:
                        reserved.append(about)
                    self._is_wanted |= not is_free
                    await self._turns()
                    return is_free

                try:
                    delivery = await queue.take(admit, offers)
                finally:
                    self._takes.remove(scope)
                    with anyio.CancelScope(shield=True):
                        for one in reserved:
                            if delivery is None or one != delivery.item:
                                await self._release(queue, one)
            if delivery is not None:
                assert offers.issuperset(delivery.item.labels)
                await self._run(queue, delivery, may_last=not offers)

    def send_one_away(self) -> None:
        """Cancel a take, wherever it is."""
        self._random.choice(self._takes or [anyio.CancelScope()]).cancel()

    def burst_over(self) -> None:
        """End what was to last over one burst of puts."""
        self._now.set()
        self._now, self._later = self._later, anyio.Event()

    async def _run(self, queue: RedisQueue, delivery: Delivery, *, may_last: bool) -> None:
        taken = delivery.item
        lasts = may_last and taken.session_id == "long"
        await self._turns()
        if self._random.random() < 0.3:
            self._places.pop(_key(taken), None)
            await queue.give_back(delivery)
        else:
            self.started[taken.execution_id] += 1
            await queue.done(delivery)
            await self._turns()
        if lasts:
            await self._later.wait()
        await self._release(queue, taken)

    async def _release(self, where: RedisQueue, one: QueueItem) -> None:
        if self._places.get(_key(one)) == one.execution_id:
            del self._places[_key(one)]
        is_wanted, self._is_wanted = self._is_wanted, False
        for queue in self._queues if is_wanted else [where]:
            await queue.recheck()

    async def _turns(self) -> None:
        for _ in range(self._random.choice([0, 1, 5, 50])):
            await anyio.lowlevel.checkpoint()


def _key(one: QueueItem) -> tuple[str, str | None]:
    return one.principal, one.execution_id if one.session_id == "long" else one.session_id


@pytest.mark.anyio
@pytest.mark.usefixtures("only_tokens_wake")
@pytest.mark.parametrize("seed", range(16))
async def test_everything_is_started_once_and_nobody_waits_in_vain(
    join: Join, redis_server: RedisServer, seed: int
) -> None:
    random = Random(seed)
    queues = [await join(max_depth=500, visibility_seconds=60) for _ in range(2 + seed % 2)]
    fleet, front = Fleet(random, queues), queues[0]
    due, removed = set[ExecutionId](), set[ExecutionId]()
    async with anyio.create_task_group() as tasks:
        for number, offers in enumerate(OFFERS):
            tasks.start_soon(fleet.work, queues[number % len(queues)], offers)
        for _ in range(40):
            for _ in range(random.choice([1, 1, 2, 10])):
                put = item(random.choice("ab"), random.choice(["s", None, "long"]), *random.choice(NEEDS))
                await front.put(put)
                due.add(put.execution_id)
                if random.random() < 0.1:
                    fleet.send_one_away()
                elif random.random() < 0.1:
                    due.discard(put.execution_id)  # who asks about it now may start it or not
                    if await random.choice(queues).remove(put.execution_id):
                        removed.add(put.execution_id)
            with anyio.fail_after(BOUND_SECONDS):
                while due - fleet.started.keys():
                    await anyio.lowlevel.checkpoint()
            fleet.burst_over()
        assert await front.stats() == QueueStats(0)
        await all_done(redis_server)
        tasks.cancel_scope.cancel()
    assert set(fleet.started.values()) == {1}
    assert not removed & fleet.started.keys()
    left = {key.removeprefix(b"one:queue:").split(b":")[0] for key in redis_server.ask("KEYS", "*")}
    assert left <= {b"state", b"turns", b"kinds", b"wake"}
