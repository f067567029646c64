"""Servers that hold nothing and workers that run everything: by the official client, on both eras."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, PATIENCE_SECONDS, call, connected, refusal, until
from tests.integration.replicas.harness import check_log, printed, whole_log
from tests.integration.workers.harness import Fleet, Program, fleet
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.mark.parametrize("mode", MODES)
async def test_submitted_through_one_and_everything_else_through_the_other(shared_fleet: Fleet, mode: str) -> None:
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(connected(server.url, mode)) for server in shared_fleet.servers
        ]
        assert (await call(first, "execute_code", command="echo hi"))["stdout"] == "hi\n"
        started = await call(first, "execute_code_async", command="cat", interactive=True, session_id=f"walk-{mode}")
        execution_id = started["execution_id"]
        for number, client in enumerate((second, first, second)):
            await call(client, "send_stdin", execution_id=execution_id, input_data=f"{number}\n", end=number == 2)
        said = await call(second, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
        assert (said["status"], said["stdout"]) == ("completed", "0\n1\n2\n")
        listed = await call(second, "list_executions", session_id=f"walk-{mode}")
        assert [entry["execution_id"] for entry in listed["executions"]] == [execution_id]
        for client in (first, second):
            check_log(await whole_log(client, execution_id))
        running = await call(first, "execute_code_async", command="echo up; sleep 60")
        cancelled = await call(second, "cancel_execution", execution_id=running["execution_id"])
        assert cancelled["status"] == "cancelled"


async def test_health_and_capabilities_of_a_server_that_runs_nothing(shared_fleet: Fleet) -> None:
    server, worker = shared_fleet.servers[0], shared_fleet.workers[0]
    said = server.told()
    assert (said["status"], said["runner"], said["running"], said["capacity"]) == ("ok", "remote", 0, 0)
    told = worker.told()
    assert (told["status"], told["runner"], told["capacity"]) == ("ok", "bubblewrap", 3)
    assert said["queue"] == told["queue"] == "redis"
    async with connected(server.url) as client:
        capabilities = await call(client, "get_capabilities")
        assert (capabilities["runner"], capabilities["isolated"], capabilities["layers"]) == ("remote", False, [])
        ran = await call(client, "execute_code", command="true")
        assert ran["isolation"]["runner"] == "bubblewrap"
        assert "pid" in ran["isolation"]["layers"]


async def test_a_worker_serves_no_tools(shared_fleet: Fleet) -> None:
    assert httpx2.post(shared_fleet.workers[0].url, json={}).status_code == 404


async def test_what_no_worker_can_enforce_is_refused_before_it_starts(shared_fleet: Fleet) -> None:
    async with connected(shared_fleet.servers[0].url) as client:
        said = await call(
            client,
            "execute_code",
            command="echo never",
            sandbox_config={"isolation": {"require": ["perfect_walls"]}},
        )
        assert (said["status"], said["termination_reason"], said["stdout"]) == ("failed", "setup_failed", "")
        events = await whole_log(client, said["execution_id"])
        check_log(events)
        assert "perfect_walls" in str(events[-1]["data"])


async def test_host_paths_that_only_the_server_s_ceiling_grants_are_refused_by_the_worker(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    asked = {"filesystem": {"allow_read": ["/var/tmp"]}}
    with fleet(own_redis, tmp_path, servers=0, workers=1) as mine:
        server = mine.add_server(SANDBOX_CEILING=json.dumps(asked))
        server.wait_ready()
        async with connected(server.url) as client:
            said = await call(client, "execute_code", command="echo never", sandbox_config=asked)
            assert (said["status"], said["termination_reason"], said["stdout"]) == ("failed", "setup_failed", "")
            events = await whole_log(client, said["execution_id"])
            assert "filesystem.allow_read" in str(events[-1]["data"])
            assert (await call(client, "execute_code", command="echo on"))["stdout"] == "on\n"


async def test_a_server_without_workers_queues_cancels_and_says_when_it_is_full(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, workers=0, SANDBOX_MAX_QUEUED="3") as mine:
        async with AsyncExitStack() as stack:
            first, second = [await stack.enter_async_context(connected(server.url)) for server in mine.servers]
            ids = [
                (await call(client, "execute_code_async", command=f"echo {number}"))["execution_id"]
                for number, client in enumerate((first, second, first))
            ]
            full = await refusal(second, "execute_code_async", command="echo late")
            assert full["code"] == "server_full"
            assert [server.told()["queued"] for server in mine.servers] == [3, 3]
            cancelled = await call(second, "cancel_execution", execution_id=ids[1])
            assert cancelled["status"] == "cancelled"
            assert mine.servers[0].told()["queued"] == 2
            mine.add_worker()
            for execution_id, status in zip(ids, ("completed", "cancelled", "completed"), strict=True):
                said = await call(second, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                assert said["status"] == status
                events = await whole_log(first, execution_id)
                check_log(events)
            waited = await call(first, "get_execution_status", execution_id=ids[0])
            assert waited["started_at"] > waited["created_at"]
            await until(lambda: mine.servers[0].told()["queued"] == 0, "nothing waits")


async def test_a_mixed_fleet_runs_in_servers_and_workers(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, concurrency=2) as mine:
        mixed = mine.add_server("--local-runner", SANDBOX_MAX_CONCURRENT="2")
        mixed.wait_ready()
        everyone: list[Program] = [mixed, mine.workers[0]]
        async with connected(mine.servers[0].url) as client:
            for _ in range(4):
                await call(client, "execute_code_async", command="sleep 60")
            await until(lambda: [program.told()["running"] for program in everyone] == [2, 2], "both work")
            waiting = await call(client, "execute_code_async", command="sleep 60")
            assert (await call(client, "get_execution_status", execution_id=waiting["execution_id"]))[
                "status"
            ] == "pending"
            listed = await call(client, "list_executions", status="running")
            async with anyio.create_task_group() as tasks:
                for entry in listed["executions"]:
                    tasks.start_soon(_end, client, entry["execution_id"])
            await call(client, "cancel_execution", execution_id=waiting["execution_id"], force=True)


async def _end(client: Client, execution_id: str) -> None:
    await call(client, "cancel_execution", execution_id=execution_id, force=True)


async def test_a_worker_that_is_asked_to_stop_finishes_its_work_and_leaves_the_rest(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, concurrency=1, SANDBOX_DRAIN_GRACE_SECONDS="600") as mine:
        leaving = mine.workers[0]
        async with connected(mine.servers[0].url) as client:
            runs = await call(client, "execute_code_async", command="cat", interactive=True)
            await until(lambda: leaving.told()["running"] == 1, "it runs")
            waits = await call(client, "execute_code_async", command="echo later")
            leaving.process.terminate()
            await until(lambda: leaving.health().status_code == 503, "it drains")
            await call(client, "send_stdin", execution_id=runs["execution_id"], input_data="bye\n", end=True)
            said = await call(
                client, "get_execution_output", execution_id=runs["execution_id"], wait=True, wait_seconds=60
            )
            assert (said["status"], said["stdout"]) == ("completed", "bye\n")
            assert await anyio.to_thread.run_sync(leaving.process.wait, PATIENCE_SECONDS) == 0
            assert mine.servers[0].told()["queued"] == 1
            mine.add_worker()
            said = await call(
                client, "get_execution_output", execution_id=waits["execution_id"], wait=True, wait_seconds=60
            )
            assert said["stdout"] == "later\n"


async def test_a_second_signal_ends_the_grace(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, SANDBOX_DRAIN_GRACE_SECONDS="600") as mine:
        leaving = mine.workers[0]
        async with connected(mine.servers[0].url) as client:
            runs = await call(client, "execute_code_async", command="echo up; sleep 600")
            await until(lambda: leaving.told()["running"] == 1, "it runs")
            leaving.process.terminate()
            await until(lambda: leaving.health().status_code == 503, "it drains")
            leaving.process.terminate()
            assert await anyio.to_thread.run_sync(leaving.process.wait, PATIENCE_SECONDS) == 0
            events = await whole_log(client, runs["execution_id"])
            check_log(events)
            assert printed(events) in {"", "up\n"}
            assert events[-1]["type"] == "cancelled"
