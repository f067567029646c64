"""The state machine holds RedisStateStore to its model, against a real Redis, and notices planted bugs."""

from __future__ import annotations

from functools import partial

import pytest

from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId
from tests.redis_server import RedisServer

from .planted_bugs import ANYWHERE, PlantedBug, check, find
from .redis_harness import redis_harness


class DropsLogs(RedisStateStore):
    """Planted bug: an access does not keep the log."""

    async def load(self, execution_id: ExecutionId) -> Execution:
        execution = await super().load(execution_id)
        await self._calls.redis.command("PEXPIRE", f"execution:{execution_id}:output", 1000)
        return execution


def test_the_store_answers_as_the_model_does(redis_server: RedisServer) -> None:
    check(partial(redis_harness, redis_server), max_examples=60)


@pytest.mark.parametrize("bug", ANYWHERE)
def test_a_planted_bug_is_found(redis_server: RedisServer, bug: type[PlantedBug]) -> None:
    find(partial(redis_harness, redis_server), bug)


def test_a_store_that_drops_logs_is_found(redis_server: RedisServer) -> None:
    find(partial(redis_harness, redis_server, DropsLogs))
