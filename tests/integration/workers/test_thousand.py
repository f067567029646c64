"""A thousand queued executions, four workers, random kills: a checker goes through all that is stored afterwards."""

from __future__ import annotations

import json
import random
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import pytest
from mcp import Client

from sandbox_core.domain.ids import ExecutionId
from tests.integration.mcp.harness import call, connected, until
from tests.integration.workers.checking import Witness, store_of, verdict_of
from tests.integration.workers.harness import LEASE_SECONDS, fleet
from tests.integration.workers.test_worker_faults import a_busy_one
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EXECUTIONS = 1000
WORKERS, CONCURRENCY = 4, 5
KILLS = 4
SECONDS = 300
"""For a machine that is busy with other things; alone it takes a tenth."""


async def submit(client: Client, numbers: range, witness: Witness, ids: dict[int, str]) -> None:
    for number in numbers:
        said = await call(
            client,
            "execute_code_async",
            command=witness.command(number, f"echo {number}; sleep 0.05"),
            session_id=f"s{number % 7}",
            sandbox_config=witness.grant,
        )
        ids[number] = said["execution_id"]


@pytest.mark.timeout(SECONDS + 60)
async def test_each_is_started_at_most_once_has_one_end_and_none_is_forgotten(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201  # pytest shows it when this fails
    ids: dict[int, str] = {}
    variables = {"SANDBOX_MAX_QUEUED": str(EXECUTIONS), "SANDBOX_CEILING": json.dumps(witness.grant)}
    with (
        fleet(
            own_redis, tmp_path, servers=2, workers=0, concurrency=0, lease_seconds=LEASE_SECONDS, **variables
        ) as mine,
        anyio.fail_after(SECONDS),
    ):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(mine.servers[n % 2].url)) for n in range(4)]
            async with anyio.create_task_group() as tasks:
                for number, client in enumerate(clients):
                    tasks.start_soon(submit, client, range(number, EXECUTIONS, len(clients)), witness, ids)
        assert mine.servers[0].told()["queued"] == EXECUTIONS
        for _ in range(WORKERS):
            mine.add_worker(CONCURRENCY)
        for kill in range(1, KILLS + 1):
            share = EXECUTIONS * kill // (KILLS + 1)
            await until(partial(witness.so_many_began, share), f"{share} began", seconds=SECONDS)
            victim = await until(lambda: a_busy_one(mine, chance), "one works")
            victim.kill()
            victim.start_again()
        verdict = await verdict_of(own_redis, ids, witness=witness, seconds=SECONDS)
        assert not verdict.faults, (seed, verdict.faults[:20])
        assert (verdict.submitted, sum(verdict.ended.values())) == (EXECUTIONS, EXECUTIONS)
        assert set(verdict.ended) <= {"exited", "lost"}, (seed, verdict.ended)
        assert verdict.ended.get("lost", 0) <= KILLS * CONCURRENCY, (seed, verdict.ended)
        async with store_of(own_redis) as store:
            stored = [await store.load(ExecutionId(execution_id)) for execution_id in ids.values()]
        ends = [(execution.node, execution.outcome) for execution in stored]
        assert len({node for node, outcome in ends if outcome and outcome.reason == "lost"}) <= KILLS, seed
