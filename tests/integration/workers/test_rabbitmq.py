"""Servers and workers with their queue in RabbitMQ, while a worker or RabbitMQ is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from tests.integration.mcp.harness import call, connected, until
from tests.integration.replicas.harness import check_log, whole_log
from tests.integration.workers.harness import LEASE_SECONDS, SHORT_LEASE_SECONDS, Fleet, fleet
from tests.rabbitmq_server import PASSWORD, RabbitServer
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SECONDS = 120


async def end_of(client: Client, execution_id: str) -> dict[str, Any]:
    """Return how it ended."""
    with anyio.fail_after(SECONDS):
        while True:
            said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=20)
            if said["status"] not in {"pending", "running"}:
                return said


def shown_nowhere(mine: Fleet) -> None:
    """Fail when the password is in a log."""
    for program in (*mine.servers, *mine.workers):
        assert PASSWORD not in program.log.read_text()


async def test_fifty_executions_run_once_each_while_a_worker_is_killed(
    own_redis: RedisServer, rabbitmq_server: RabbitServer, tmp_path: Path
) -> None:
    variables = {
        "SANDBOX_QUEUE_URL": rabbitmq_server.url,
        "SANDBOX_REDIS_PREFIX": tmp_path.name,
        "SANDBOX_REDIS_TIMEOUT_SECONDS": "10",
        "SANDBOX_LOG_LEVEL": "debug",
    }
    with fleet(
        own_redis, tmp_path, lease_seconds=LEASE_SECONDS, servers=1, workers=2, concurrency=3, **variables
    ) as mine:
        async with connected(mine.servers[0].url) as client:
            ids = []
            for number in range(50):
                if number == 12:
                    # The first fill every place, and the others wait behind them.
                    await until(lambda: mine.workers[0].told()["running"] > 0, "it works")
                    mine.workers[0].kill()
                    mine.workers[0].start_again()
                command = f"sleep {6 if number < 6 else 0.1}; echo {number}"
                ids.append((await call(client, "execute_code_async", command=command))["execution_id"])
            ended = []
            for number, execution_id in enumerate(ids):
                said = await end_of(client, execution_id)
                ended.append(said["termination_reason"])
                if said["status"] == "completed":
                    assert said["stdout"] == f"{number}\n"
                events = await whole_log(client, execution_id)
                check_log(events)
                assert sum(event["type"] == "ready" for event in events) <= 1
            assert set(ended) <= {"exited", "lost"}
            assert ended.count("lost") <= 3
            await until(lambda: mine.servers[0].told()["queued"] == 0, "nothing waits")
        shown_nowhere(mine)


async def test_rabbitmq_killed_with_executions_waiting_and_running(
    own_redis: RedisServer, own_rabbitmq: RabbitServer, tmp_path: Path
) -> None:
    variables = {"SANDBOX_QUEUE_URL": own_rabbitmq.url, "SANDBOX_REDIS_TIMEOUT_SECONDS": "10"}
    with fleet(
        own_redis, tmp_path, lease_seconds=LEASE_SECONDS, servers=1, workers=1, concurrency=1, **variables
    ) as mine:
        async with connected(mine.servers[0].url) as client:
            first = (await call(client, "execute_code_async", command="sleep 3; echo on"))["execution_id"]
            await until(lambda: mine.workers[0].told()["running"] == 1, "one runs")
            ids = [(await call(client, "execute_code_async", command="echo on"))["execution_id"] for _ in range(4)]
            await anyio.to_thread.run_sync(own_rabbitmq.kill)
            await until(lambda: health_of(mine) == "unavailable", "health tells")
            await anyio.to_thread.run_sync(own_rabbitmq.start)
            for execution_id in (first, *ids):
                said = await end_of(client, execution_id)
                assert (said["status"], said["stdout"]) == ("completed", "on\n")
                check_log(await whole_log(client, execution_id))
            await until(lambda: health_of(mine) == "ok", "health tells")
        shown_nowhere(mine)


async def test_what_a_server_stored_and_never_queued_is_run(
    own_redis: RedisServer, rabbitmq_server: RabbitServer, tmp_path: Path
) -> None:
    prefix = tmp_path.name
    variables = {
        "SANDBOX_QUEUE_URL": rabbitmq_server.url,
        "SANDBOX_REDIS_PREFIX": prefix,
        "SANDBOX_REDIS_TIMEOUT_SECONDS": "10",
    }
    with fleet(
        own_redis, tmp_path, lease_seconds=SHORT_LEASE_SECONDS, servers=1, workers=0, concurrency=3, **variables
    ) as mine:
        async with connected(mine.servers[0].url) as client:
            started = await call(client, "execute_code_async", command="echo found")
            for key in own_redis.ask("KEYS", f"{prefix}:queue:*"):
                own_redis.ask("DEL", key)
            own_redis.ask("ZADD", f"{prefix}:waiting", 1, started["execution_id"])
            mine.add_worker()
            said = await end_of(client, started["execution_id"])
            assert (said["status"], said["stdout"]) == ("completed", "found\n")


def health_of(mine: Fleet) -> str:
    """Return what the server says of itself."""
    try:
        return str(mine.servers[0].told()["status"])
    except httpx2.HTTPError:
        return "does not answer"
