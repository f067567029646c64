"""A worker that stands still most of the time, though never for a lease: it loses nothing and holds nobody up."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from tests.integration.mcp.harness import call, connected, until
from tests.integration.program import Program
from tests.integration.replicas.harness import check_log, whole_log
from tests.integration.workers.checking import Witness, verdict_of
from tests.integration.workers.harness import fleet
from tests.integration.workers.test_worker_faults import COUNT, counted, end_of
from tests.redis_server import RedisServer

STOPPED_SECONDS, GOING_SECONDS = 1.0, 0.2
FIRST, OF_THE_QUICK_ONE, ANYWHERE = 4, 10, 10

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def stutter(slow: Program) -> None:
    """Stop it and let it go on, until cancelled; it goes on then."""
    try:
        while True:
            slow.pause()
            await anyio.sleep(STOPPED_SECONDS)
            slow.resume()
            await anyio.sleep(GOING_SECONDS)
    finally:
        slow.resume()


async def test_a_slow_worker_keeps_its_lease_ends_what_it_runs_and_holds_nobody_up(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    ids: dict[int, str] = {}
    variables = {"SANDBOX_CEILING": json.dumps(witness.grant)}
    with fleet(own_redis, tmp_path, servers=1, workers=1, concurrency=2, lease_seconds=20, **variables) as mine:
        (slow,) = mine.workers
        quick = mine.add_worker(2, SANDBOX_LABELS="quick")
        mine.wait_ready()
        async with connected(mine.servers[0].url) as client:

            async def start(program: str, *labels: str) -> None:
                said = await call(
                    client,
                    "execute_code_async",
                    command=witness.command(len(ids), program),
                    sandbox_config=witness.grant,
                    labels=list(labels),
                )
                ids[len(ids)] = said["execution_id"]

            # Both workers take what needs no label, so the first fill both, and the slow one has its two.
            for _ in range(FIRST):
                await start(COUNT.format(lines=100))
            await until(lambda: [worker.told()["running"] for worker in (slow, quick)] == [2, 2], "both work")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stutter, slow)
                for _ in range(OF_THE_QUICK_ONE):
                    await start("echo quick", "quick")
                for _ in range(ANYWHERE):
                    await start("echo anywhere")
                for number in range(FIRST, FIRST + OF_THE_QUICK_ONE):
                    assert (await end_of(client, ids[number]))["stdout"] == "quick\n"
                for number in range(FIRST + OF_THE_QUICK_ONE, len(ids)):
                    assert (await end_of(client, ids[number]))["stdout"] == "anywhere\n"
                for number in range(FIRST):
                    assert (await end_of(client, ids[number]))["stdout"] == counted(100)
                    check_log(await whole_log(client, ids[number]))
                tasks.cancel_scope.cancel()
        verdict = await verdict_of(own_redis, ids, witness=witness)
        assert not verdict.faults
        assert verdict.ended == {"exited": len(ids)}
