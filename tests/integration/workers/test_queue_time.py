"""Time in the queue is limited, whoever is left to say so; and what is retry_safe is run again by another worker."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from mcp import Client

from tests.integration.mcp.harness import call, connected, until
from tests.integration.replicas.harness import check_log, printed, whole_log
from tests.integration.workers.checking import Witness
from tests.integration.workers.harness import SHORT_LEASE_SECONDS, fleet
from tests.integration.workers.test_worker_faults import end_of, has_printed
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_without_any_worker_what_a_dead_server_accepted_ends_as_never_started(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, workers=0, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        accepted, left = mine.servers
        async with connected(accepted.url) as client:
            started = await call(
                client, "execute_code_async", command="echo never", sandbox_config={"queue_timeout_seconds": 1}
            )
            patient = await call(client, "execute_code_async", command="echo later")
        accepted.kill()
        async with connected(left.url) as client:
            execution_id = started["execution_id"]
            said = await end_of(client, execution_id)
            assert (said["status"], said["termination_reason"]) == ("failed", "never_started")
            assert said["usage"]["queued_seconds"] >= 1
            events = await whole_log(client, execution_id)
            check_log(events)
            (event,) = events
            assert (event["type"], event["reason"]) == ("error", "never_started")
            assert "queue_timeout_seconds of 1." in str(event["data"])
            assert f"it waited {said['usage']['queued_seconds']:.1f} s" in str(event["data"])
            assert left.told()["queued"] == 1
            mine.add_worker()
            assert (await end_of(client, patient["execution_id"]))["stdout"] == "later\n"


async def test_what_is_retry_safe_survives_its_worker_and_what_is_not_is_lost(
    own_redis: RedisServer, tmp_path: Path, witness: Witness
) -> None:
    ceiling = json.dumps(witness.grant)
    with fleet(
        own_redis, tmp_path, workers=1, concurrency=2, lease_seconds=SHORT_LEASE_SECONDS, SANDBOX_CEILING=ceiling
    ) as mine:
        async with AsyncExitStack() as stack:
            first, second = [await stack.enter_async_context(connected(server.url)) for server in mine.servers]
            safe, unsafe = [await start(first, witness, number, retry_safe=number == 1) for number in (1, 2)]
            await until(partial(witness.so_many_began, 2), "both run")
            for execution_id in (safe, unsafe):
                await until(partial(has_printed, first, execution_id), "it has printed")
            mine.workers[0].kill()
            mine.add_worker()
            said = await end_of(second, safe)
            assert (said["status"], said["exit_code"], said["attempt"]) == ("completed", 0, 2), said
            events = await whole_log(second, safe)
            check_log(events)
            assert printed(events) == "up\nup\ndone\n"
            (retry,) = [event for event in events if event["type"] == "retry"]
            assert (retry["attempt"], retry["max_attempts"]) == (2, 3)
            assert (await call(second, "get_execution_status", execution_id=safe))["retry_safe"] is True
            lost = await end_of(second, unsafe)
            assert (lost["status"], lost["termination_reason"], lost["attempt"]) == ("failed", "lost", 1)
    assert witness.began() == {1: 2, 2: 1}


async def start(client: Client, witness: Witness, number: int, *, retry_safe: bool) -> str:
    """Start a program whose first attempt waits to be killed, and return its id."""
    first = f"[ $(grep -cx {number} {witness.file}) = 2 ] || sleep 1000"
    started = await call(
        client,
        "execute_code_async",
        command=witness.command(number, f"echo up; {first}; echo done"),
        sandbox_config=witness.grant,
        retry_safe=retry_safe,
    )
    return str(started["execution_id"])
