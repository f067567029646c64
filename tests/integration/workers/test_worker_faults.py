"""Workers, servers and Redis that die while executions wait and run; afterwards every log is checked."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from pydantic import SecretStr

from sandbox_adapters.queues.redis import RedisQueue
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from tests.integration.mcp.harness import call, connected, structured, until
from tests.integration.replicas.harness import check_log, printed, whole_log
from tests.integration.workers.checking import Witness
from tests.integration.workers.harness import LEASE_SECONDS, SHORT_LEASE_SECONDS, Fleet, Program, fleet
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

COUNT = "for i in $(seq 1 {lines}); do echo $i; sleep 0.05; done"


def counted(lines: int) -> str:
    return "".join(f"{number}\n" for number in range(1, lines + 1))


async def end_of(client: Client, execution_id: str, seconds: float = 60) -> dict[str, Any]:
    """Return how it ended."""
    with anyio.fail_after(seconds):
        while True:
            said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=20)
            if said["status"] not in {"pending", "running"}:
                return said


async def test_what_a_worker_took_and_never_claimed_is_run_by_another(own_redis: RedisServer, tmp_path: Path) -> None:
    async def admit(_: object) -> bool:
        return True

    with fleet(own_redis, tmp_path, servers=1, workers=0, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        async with connected(mine.servers[0].url) as client:
            started = await call(client, "execute_code_async", command="echo once")
            async with (
                RedisConnection(RedisOptions(SecretStr(own_redis.url))) as connection,
                RedisQueue(connection=connection, visibility_seconds=SHORT_LEASE_SECONDS) as dying,
            ):
                assert (await dying.take(admit)).item.execution_id == started["execution_id"]
            mine.add_worker()
            said = await end_of(client, started["execution_id"])
            assert (said["status"], said["stdout"]) == ("completed", "once\n")
            check_log(await whole_log(client, started["execution_id"]))


async def test_a_worker_killed_while_it_is_being_woken_costs_nothing(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, lease_seconds=LEASE_SECONDS) as mine:
        async with connected(mine.servers[0].url) as client:
            await until(lambda: own_redis.ask("CLIENT", "LIST").count(b"cmd=blpop") >= 2, "both wait")
            mine.workers[0].pause()
            ids = [(await call(client, "execute_code_async", command="echo on"))["execution_id"] for _ in range(4)]
            mine.workers[0].kill()
            for execution_id in ids:
                said = await end_of(client, execution_id)
                assert (said["status"], said["stdout"]) == ("completed", "on\n")
                check_log(await whole_log(client, execution_id))


async def test_what_ran_in_a_killed_worker_is_lost_and_what_waited_is_run(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, workers=1, concurrency=2, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        async with connected(mine.servers[0].url) as client:
            running = [
                (await call(client, "execute_code_async", command="echo up; sleep 100"))["execution_id"]
                for _ in range(2)
            ]
            for execution_id in running:
                await until(partial(has_printed, client, execution_id), "it has printed")
            waiting = [(await call(client, "execute_code_async", command="echo on"))["execution_id"] for _ in range(3)]
            mine.workers[0].kill()
            # No worker is left: a server notices, and says so.
            for execution_id in running:
                said = await end_of(client, execution_id)
                assert (said["status"], said["termination_reason"]) == ("failed", "lost")
                events = await whole_log(client, execution_id)
                check_log(events)
                assert printed(events) == "up\n"
            for execution_id in waiting:
                assert (await call(client, "get_execution_status", execution_id=execution_id))["status"] == "pending"
            mine.workers[0].start_again()
            for execution_id in waiting:
                said = await end_of(client, execution_id)
                assert (said["status"], said["stdout"]) == ("completed", "on\n")
                check_log(await whole_log(client, execution_id))


async def test_a_worker_that_sleeps_through_its_lease_writes_nothing_and_ends_its_process(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        sleeper = mine.workers[0]
        async with connected(mine.servers[0].url) as client:
            started = await call(client, "execute_code_async", command="echo up; sleep 100; echo late")
            execution_id = started["execution_id"]
            await until(partial(has_printed, client, execution_id), "it has printed")
            sleeper.pause()
            said = await end_of(client, execution_id)
            assert said["termination_reason"] == "lost"
            before = await whole_log(client, execution_id)
            sleeper.resume()
            await until(lambda: sleeper.told()["running"] == 0, "the process of the lost execution is ended")
            assert await whole_log(client, execution_id) == before
            check_log(before)
            assert (await call(client, "execute_code", command="echo again"))["stdout"] == "again\n"


async def test_what_a_server_stored_and_never_queued_is_run(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=0, lease_seconds=SHORT_LEASE_SECONDS) as mine:
        async with connected(mine.servers[0].url) as client:
            started = await call(client, "execute_code_async", command="echo found")
            for key in own_redis.ask("KEYS", "queue:*"):
                own_redis.ask("DEL", key)
            own_redis.ask("ZADD", "waiting", 1, started["execution_id"])
            mine.add_worker()
            said = await end_of(client, started["execution_id"])
            assert (said["status"], said["stdout"]) == ("completed", "found\n")


async def test_executions_outlive_every_server(own_redis: RedisServer, tmp_path: Path, witness: Witness) -> None:
    lines = 40
    ceiling = json.dumps(witness.grant)
    with fleet(own_redis, tmp_path, concurrency=2, SANDBOX_CEILING=ceiling) as mine:
        async with connected(mine.servers[0].url) as client:
            # None ends before the servers have.
            program = f"{COUNT.format(lines=lines)}; until [ -s {witness.file} ]; do sleep 0.1; done"
            given: dict[str, Any] = {"command": program, "sandbox_config": witness.grant}
            ids = [(await call(client, "execute_code_async", **given))["execution_id"] for _ in range(6)]
            await until(lambda: sum(worker.told()["running"] for worker in mine.workers) == 4, "they run")
        for server in mine.servers:
            server.kill()
        witness.file.write_text("all are dead\n")
        mine.servers[1].start_again()
        mine.servers[1].wait_ready()
        async with connected(mine.servers[1].url) as client:
            for execution_id in ids:
                said = await end_of(client, execution_id)
                assert said["status"] == "completed"
                events = await whole_log(client, execution_id)
                check_log(events)
                assert printed(events) == counted(lines)


async def test_redis_restarted_with_messages_waiting(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, workers=1, concurrency=1, lease_seconds=LEASE_SECONDS) as mine:
        async with connected(mine.servers[0].url) as client:
            ids = [
                (await call(client, "execute_code_async", command=COUNT.format(lines=20)))["execution_id"]
                for _ in range(4)
            ]
            await until(lambda: mine.workers[0].told()["running"] == 1, "one runs")
            own_redis.kill()
            own_redis.start()
            for execution_id in ids:
                said = await end_of(client, execution_id)
                assert said["status"] == "completed", said
                events = await whole_log(client, execution_id)
                check_log(events)
                assert printed(events) == counted(20)


async def test_random_kills_lose_only_what_ran_and_start_nothing_twice(own_redis: RedisServer, tmp_path: Path) -> None:
    chance = random.Random(5)
    executions, lines = 60, 25
    ids: list[str] = []
    with fleet(own_redis, tmp_path, workers=3, concurrency=3, lease_seconds=LEASE_SECONDS) as mine:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(server.url)) for server in mine.servers]

            async def produce() -> None:
                for number in range(executions):
                    said = await clients[number % 2].call_tool(
                        "execute_code_async", {"command": COUNT.format(lines=lines), "session_id": f"s{number % 7}"}
                    )
                    assert not said.is_error, structured(said)
                    ids.append(structured(said)["execution_id"])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce)
                for _ in range(4):
                    victim = await until(lambda: a_busy_one(mine, chance), "one works")
                    victim.kill()
                    victim.start_again()
            ended = Counter[str]()
            for execution_id in ids:
                said = await end_of(clients[0], execution_id)
                ended[said["termination_reason"]] += 1
                for client in clients:
                    events = await whole_log(client, execution_id)
                    check_log(events)
                    assert sum(event["type"] == "ready" for event in events) <= 1
                    assert counted(lines).startswith(printed(events))
                    if said["status"] == "completed":
                        assert printed(events) == counted(lines)
            assert len(set(ids)) == executions == ended.total()
            assert set(ended) <= {"exited", "lost"}, ended
            assert 1 <= ended["lost"] <= 4 * 3, ended
            for worker in mine.workers:
                await anyio.to_thread.run_sync(worker.wait_ready)
            await nothing_is_left(mine, clients[0])


def a_busy_one(mine: Fleet, chance: random.Random) -> Program | None:
    """Return a worker that runs something; None when none does."""
    for worker in chance.sample(mine.workers, len(mine.workers)):
        try:
            if worker.told()["running"]:
                return worker
        except httpx2.HTTPError:
            continue  # it is starting
    return None


async def nothing_is_left(mine: Fleet, client: Client) -> None:
    """Fail unless nothing waits, runs or is held any more."""
    for status in ("pending", "running"):
        assert (await call(client, "list_executions", status=status))["executions"] == []
    await until(lambda: sum(worker.told()["running"] for worker in mine.workers) == 0, "no process is left")
    await until(lambda: kept_by_the_queue(mine) <= {b"queue:state", b"queue:turns"}, "nothing is held")


def kept_by_the_queue(mine: Fleet) -> set[bytes]:
    """Return the names of its keys that are no bare numbers."""
    return {key for key in mine.redis.ask("KEYS", "queue:*") if mine.redis.ask("TYPE", key) not in (b"string", b"none")}


async def has_printed(client: Client, execution_id: str) -> bool:
    page = await call(client, "get_execution_output", execution_id=execution_id)
    return bool(page["stdout"])
