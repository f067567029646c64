"""Real workers that offer different things, and what `sandbox workers` tells of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.integration.mcp.harness import PATIENCE_SECONDS, call, connected, structured, until
from tests.integration.workers.harness import Fleet, Program, fleet
from tests.integration.workers.test_commands import sandbox
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def known(mine: Fleet) -> dict[str, dict[str, Any]]:
    """Return what `sandbox workers --json` lists, by node."""
    done = sandbox("workers", "--json", REDIS_URL=mine.redis.url)
    assert (done.returncode, done.stderr) == (0, "")
    return {worker["node"]: worker for worker in json.loads(done.stdout)["workers"]}


def node_of(program: Program) -> str:
    return str(program.told()["node"])


async def listed(mine: Fleet, holds: Callable[[dict[str, dict[str, Any]]], bool]) -> dict[str, dict[str, Any]]:
    """Wait until the list is so, and return it."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            found = await anyio.to_thread.run_sync(known, mine)
            if holds(found):
                return found
            await anyio.sleep(0.1)


async def test_what_needs_a_gpu_runs_only_where_one_is_and_the_rest_anywhere(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, concurrency=1) as mine:
        plain = mine.workers[0]
        with_gpu = mine.add_worker(1, SANDBOX_LABELS="large, gpu")
        mine.wait_ready()
        async with connected(mine.servers[0].url) as client:
            ids = [
                (await call(client, "execute_code_async", command="true", labels=["gpu"]))["execution_id"]
                for _ in range(6)
            ]
            for execution_id in ids:
                await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                status = await call(client, "get_execution_status", execution_id=execution_id)
                assert (status["status"], status["labels"]) == ("completed", ["gpu"])
            assert {node_that_ran(own_redis, execution_id) for execution_id in ids} == {node_of(with_gpu)}
            # One place each: both busy at once means that one of two without labels ran beside the gpu.
            sleepers = [
                (await call(client, "execute_code_async", command="sleep 600"))["execution_id"] for _ in range(2)
            ]
            both = {node_of(plain), node_of(with_gpu)}
            await until(lambda: {node_that_ran(own_redis, one) for one in sleepers} == both, "both work")
            waits = await call(client, "execute_code_async", command="echo gpu", labels=["gpu", "large"])
            for execution_id in sleepers:
                if node_that_ran(own_redis, execution_id) == node_of(plain):
                    await call(client, "cancel_execution", execution_id=execution_id, force=True)
            await until(lambda: plain.told()["running"] == 0, "the one without labels is free")
            status = await call(client, "get_execution_status", execution_id=waits["execution_id"])
            assert status["status"] == "pending"
            for execution_id in sleepers:
                await call(client, "cancel_execution", execution_id=execution_id, force=True)
            said = await call(
                client, "get_execution_output", execution_id=waits["execution_id"], wait=True, wait_seconds=60
            )
            assert said["stdout"] == "gpu\n"


async def test_what_nobody_offers_is_refused_at_once_by_name(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, SANDBOX_LABELS="gpu") as mine:
        async with connected(mine.servers[0].url) as client:
            for labels, named in ((["arm64"], "no worker offers arm64"), (["gpu", "arm64"], "Offered now: gpu")):
                refused = await client.call_tool("execute_code", {"command": "true", "labels": labels})
                error = structured(refused)["error"]
                assert (refused.is_error, error["code"]) == (True, "unservable")
                assert named in error["message"]
                assert (error["labels"], error["offered"]) == (sorted(labels), ["gpu"])
            malformed = await client.call_tool("execute_code", {"command": "true", "labels": ["GPU!"]})
            assert structured(malformed)["error"]["code"] == "invalid_argument"
            assert (await call(client, "list_executions"))["executions"] == []
            # A worker that drains offers nothing any more.
            mine.workers[0].process.terminate()
            assert await anyio.to_thread.run_sync(mine.workers[0].process.wait, PATIENCE_SECONDS) == 0
            refused = await client.call_tool("execute_code", {"command": "true", "labels": ["gpu"]})
            assert "Offered now: none" in structured(refused)["error"]["message"]


async def test_what_waits_for_a_label_outlives_the_worker_that_offered_it(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, concurrency=1) as mine:
        dying = mine.add_worker(1, SANDBOX_LABELS="gpu")
        mine.wait_ready()
        async with connected(mine.servers[0].url) as client:
            await call(client, "execute_code_async", command="sleep 600", labels=["gpu"])
            await until(lambda: dying.told()["running"] == 1, "it runs")
            waiting = [
                (await call(client, "execute_code_async", command="echo on", labels=["gpu"]))["execution_id"]
                for _ in range(3)
            ]
            dying.kill()
            assert (await call(client, "execute_code", command="echo anywhere"))["stdout"] == "anywhere\n"
            for execution_id in waiting:
                assert (await call(client, "get_execution_status", execution_id=execution_id))["status"] == "pending"
            mine.add_worker(1, SANDBOX_LABELS="gpu")
            for execution_id in waiting:
                said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                assert (said["status"], said["stdout"]) == ("completed", "on\n")


async def test_workers_lists_load_labels_and_who_drains(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=1, workers=1, SANDBOX_DRAIN_GRACE_SECONDS="600") as mine:
        with_gpu = mine.add_worker(2, SANDBOX_LABELS="gpu")
        mixed = mine.add_server("--local-runner", SANDBOX_MAX_CONCURRENT="7")
        mine.wait_ready()
        found = await listed(mine, lambda found: len(found) == 3)
        node, told = node_of(with_gpu), with_gpu.told()
        assert (found[node]["labels"], found[node]["concurrency"], found[node]["queue"]) == (["gpu"], 2, "redis")
        assert found[node]["heard_seconds_ago"] < 30
        for name in ("node", "host", "started_at", "labels", "concurrency", "queue", "version", "draining"):
            assert told[name] == found[node][name], name
        assert sorted(worker["concurrency"] for worker in found.values()) == [2, 3, 7]
        assert "host" not in mixed.told()
        async with connected(mine.servers[0].url) as client:
            runs = await call(client, "execute_code_async", command="cat", interactive=True, labels=["gpu"])
            await until(lambda: with_gpu.told()["running"] == 1, "it runs")
            with_gpu.process.terminate()
            found = await listed(mine, lambda found: found[node]["draining"])
            assert found[node]["busy"] == 1
            table = sandbox("workers", REDIS_URL=mine.redis.url, COLUMNS="40").stdout
            (line,) = [line for line in table.splitlines() if line.startswith(f"{node} ")]
            for shown in (" gpu ", " 1/2 ", " draining ", f" {found[node]['host']} ", f" {found[node]['version']}"):
                assert shown in f"{line} ", shown
            await call(client, "send_stdin", execution_id=runs["execution_id"], input_data="", end=True)
        assert await anyio.to_thread.run_sync(with_gpu.process.wait, PATIENCE_SECONDS) == 0
        await listed(mine, lambda found: node not in found and len(found) == 2)


def node_that_ran(redis: RedisServer, execution_id: str) -> str:
    """Return the node that the stored execution names."""
    return str(json.loads(redis.ask("GET", f"execution:{execution_id}"))["execution"]["node"])
