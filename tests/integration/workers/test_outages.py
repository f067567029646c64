"""Redis, the queue and workers that are restarted under load: nothing that was accepted is lost or run twice."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import anyio
import pytest
from mcp import Client

from tests.integration.mcp.harness import connected, until
from tests.integration.workers.checking import Witness, is_over, verdict_of
from tests.integration.workers.harness import LEASE_SECONDS, Program, fleet
from tests.redis_server import RedisServer, running_redis

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(300)]

SLOW = "for i in 1 2 3 4; do echo $i; sleep 0.2; done"


async def start(client: Client, number: int, witness: Witness, ids: dict[int, str]) -> None:
    """Start one; while Redis is away, ask again, as the refusal says."""
    command = witness.command(number, SLOW)
    arguments = {"command": command, "sandbox_config": witness.grant, "idempotency_key": f"number-{number}"}
    with anyio.fail_after(60):
        while (said := await client.call_tool("execute_code_async", arguments)).is_error:
            assert (said.structured_content or {})["error"]["code"] == "store_unavailable"
            await anyio.sleep(0.1)
    ids[number] = (said.structured_content or {})["execution_id"]


async def submit(client: Client, count: int, witness: Witness, ids: dict[int, str]) -> None:
    for number in range(count):
        await start(client, number, witness, ids)


async def test_redis_killed_again_and_again_under_load(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    ids: dict[int, str] = {}
    ceiling = json.dumps(witness.grant)
    with fleet(own_redis, tmp_path, concurrency=3, lease_seconds=LEASE_SECONDS, SANDBOX_CEILING=ceiling) as mine:
        async with connected(mine.servers[0].url) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(submit, client, 40, witness, ids)
            for share in (8, 16, 24):
                await until(partial(witness.so_many_began, share), f"{share} began")
                await anyio.to_thread.run_sync(own_redis.kill)
                await anyio.to_thread.run_sync(own_redis.start)
        verdict = await verdict_of(own_redis, ids, witness=witness)
    assert not verdict.faults
    # Owners lived through it all, so nothing may be told to be lost.
    assert verdict.ended == {"exited": 40}


async def test_a_queue_of_its_own_killed_with_messages_waiting(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    with running_redis() as queue:
        ids = await restarted_with_messages_waiting(own_redis, queue, tmp_path, witness, forgets=False)
        verdict = await verdict_of(own_redis, ids, witness=witness)
    assert not verdict.faults
    assert verdict.ended == {"exited": 12}


async def test_a_queue_that_forgot_its_messages_is_filled_again_from_the_state(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    with running_redis() as queue:
        ids = await restarted_with_messages_waiting(own_redis, queue, tmp_path, witness, forgets=True)
        verdict = await verdict_of(own_redis, ids, witness=witness)
    assert not verdict.faults
    assert verdict.ended == {"exited": 12}


async def restarted_with_messages_waiting(
    redis: RedisServer, queue: RedisServer, directory: Path, witness: Witness, *, forgets: bool
) -> dict[int, str]:
    ids: dict[int, str] = {}
    ceiling = json.dumps(witness.grant)
    variables = {"SANDBOX_QUEUE_URL": queue.url, "SANDBOX_CEILING": ceiling}
    with fleet(redis, directory, servers=1, workers=0, concurrency=2, lease_seconds=LEASE_SECONDS, **variables) as mine:
        async with connected(mine.servers[0].url) as client:
            await submit(client, 12, witness, ids)
            assert mine.servers[0].told()["queued"] == 12
            queue.kill()
            queue.start()
            if forgets:
                queue.ask("FLUSHALL")
                # As if the time were over in which nobody looks after them, a minute at most.
                for execution_id in ids.values():
                    redis.ask("ZADD", "waiting", "XX", 1, execution_id)
            mine.add_worker(4)
            await until(partial(is_over, redis), "all ran")
    return ids


async def test_a_rolling_restart_of_the_workers_loses_nothing(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    ids: dict[int, str] = {}
    restarted = anyio.Event()
    ceiling = json.dumps(witness.grant)
    variables = {"SANDBOX_CEILING": ceiling, "SANDBOX_DRAIN_GRACE_SECONDS": "60"}
    with fleet(
        own_redis, tmp_path, servers=1, workers=3, concurrency=2, lease_seconds=LEASE_SECONDS, **variables
    ) as mine:

        async def produce(client: Client) -> None:
            """Keep all workers busy, and some work waiting."""
            while not restarted.is_set():
                await until(lambda: len(ids) - witness.began().total() < 6, "there is not too much")
                await start(client, len(ids), witness, ids)

        async with connected(mine.servers[0].url) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(produce, client)
            for worker in mine.workers:
                await until(partial(runs_something, worker), "it works")
                worker.process.terminate()
                await anyio.to_thread.run_sync(worker.start_again)
                await anyio.to_thread.run_sync(worker.wait_ready)
            restarted.set()
        verdict = await verdict_of(own_redis, ids, witness=witness)
        assert [worker.process.poll() for worker in mine.workers] == [None] * 3
    assert not verdict.faults
    assert verdict.ended == {"exited": len(ids)}
    assert witness.began() == Counter(range(len(ids)))


def runs_something(worker: Program) -> bool:
    return bool(worker.told()["running"])
