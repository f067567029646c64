"""What was accepted once is queued again by whoever finds it, however much waits: bounds are for what is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.mcp.harness import call, connected, until
from tests.integration.workers.harness import SHORT_LEASE_SECONDS, fleet
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_worker_queues_again_what_was_lost_behind_more_than_its_own_bound(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    bound = {"SANDBOX_MAX_QUEUED": "1"}
    with fleet(own_redis, tmp_path, servers=1, workers=0, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        dying = mine.add_worker(1, **bound)
        dying.wait_ready()
        async with connected(mine.servers[0].url) as client:
            lost = (await call(client, "execute_code_async", command="sleep 600", retry_safe=True))["execution_id"]
            await until(lambda: dying.told()["running"] == 1, "it runs")
            survivor = mine.add_worker(1, **bound)
            survivor.wait_ready()
            for _ in range(4):
                await call(client, "execute_code_async", command="sleep 600")
            await until(lambda: survivor.told()["running"] == 1, "another runs in the survivor")
        mine.servers[0].kill()
        dying.kill()
        await until(lambda: own_redis.ask("HEXISTS", "queue:items", lost), "it waits to be run again")
        assert own_redis.ask("HLEN", "queue:items") == 4
