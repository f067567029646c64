"""A worker that does not reach Redis for longer than its lease, while everybody else does."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.integration.mcp.harness import call, connected, processes_with, until
from tests.integration.replicas.harness import check_log, whole_log
from tests.integration.workers.checking import Witness, verdict_of
from tests.integration.workers.harness import SHORT_LEASE_SECONDS, fleet
from tests.integration.workers.partition import partitioned_way
from tests.integration.workers.test_worker_faults import end_of, has_printed
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(300)]


async def test_its_writes_are_fenced_off_its_processes_end_and_the_loss_is_told_once(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    mark = f"43210.{os.getpid()}"
    ids: dict[int, str] = {}
    ceiling = json.dumps(witness.grant)
    async with partitioned_way(own_redis) as way:
        with fleet(
            own_redis, tmp_path, servers=2, workers=0, lease_seconds=SHORT_LEASE_SECONDS, SANDBOX_CEILING=ceiling
        ) as mine:
            cut_off = mine.add_worker(2, REDIS_URL=way.url, SANDBOX_QUEUE_URL=way.url)
            # The harness waits without an event loop, and the way lives in ours.
            await anyio.to_thread.run_sync(cut_off.wait_ready)
            async with connected(mine.servers[0].url) as client:

                async def start(program: str) -> str:
                    command = witness.command(len(ids), program)
                    arguments = {"command": command, "sandbox_config": witness.grant}
                    execution_id: str = (await call(client, "execute_code_async", **arguments))["execution_id"]
                    ids[len(ids)] = execution_id
                    return execution_id

                talks = await start("for i in $(seq 100000); do echo $i; sleep 0.05; done")
                sleeps = await start(f"echo up; sleep {mark}")
                for execution_id in (talks, sleeps):
                    await until(partial(has_printed, client, execution_id), "it has printed")
                assert processes_with(mark)
                way.cut()
                before = {}
                for execution_id in (talks, sleeps):
                    assert (await end_of(client, execution_id))["termination_reason"] == "lost"
                    before[execution_id] = await whole_log(client, execution_id)
                    check_log(before[execution_id])
                waits = await start("echo elsewhere")
                mine.add_worker(1).wait_ready()
                assert (await end_of(client, waits))["stdout"] == "elsewhere\n"
                mine.workers[-1].kill()
                way.mend()
                await until(lambda: not processes_with(mark), "the process of what is lost is ended")
                await until(partial(runs_nothing, cut_off.port), "nothing runs there any more")
                for execution_id in (talks, sleeps):
                    assert await whole_log(client, execution_id) == before[execution_id]
                again = await start("echo again")
                assert (await end_of(client, again))["stdout"] == "again\n"
            verdict = await verdict_of(own_redis, ids, witness=witness)
            assert not verdict.faults
            assert verdict.ended == {"exited": 2, "lost": 2}
            await anyio.to_thread.run_sync(cut_off.close)


async def runs_nothing(port: int) -> bool:
    async with httpx2.AsyncClient(timeout=20) as http:
        return bool((await http.get(f"http://127.0.0.1:{port}/health")).json()["running"] == 0)
