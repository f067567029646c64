"""Replicas that die, are replaced, or disagree about the time; afterwards every log is checked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client

from tests.integration.mcp.harness import MODES, PATIENCE_SECONDS, call, connected, structured, until
from tests.integration.replicas.harness import (
    DEPLOY,
    LOST_WITHIN_SECONDS,
    SHORT_LEASE,
    Replica,
    check_log,
    need,
    nginx,
    printed,
    replicas,
    whole_log,
)
from tests.redis_server import RedisServer
from tests.stopping import pause

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

COUNT = "for i in $(seq 1 {lines}); do echo $i; sleep 0.05; done"


def counted(lines: int) -> str:
    return "".join(f"{number}\n" for number in range(1, lines + 1))


@pytest.fixture
def mine(own_redis: RedisServer, tmp_path: Path) -> Iterator[list[Replica]]:
    with replicas(own_redis, tmp_path, SANDBOX_MAX_PER_SESSION="10") as started:
        yield started


async def test_a_replica_killed_under_load_loses_its_own_executions_once(mine: list[Replica]) -> None:
    lines = 100
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(replica.url)) for replica in mine[1:]]
        ids: dict[int, list[str]] = {0: [], 1: [], 2: []}
        # A connection of its own, since it dies with the replica.
        async with connected(mine[0].url) as doomed:
            for number, client in ((0, doomed), (1, clients[0]), (2, clients[1])):
                # Those of the doomed one do not end before it does.
                program = COUNT.format(lines=lines) + ("" if number else "; sleep 600")
                for _ in range(3):
                    started = await call(client, "execute_code_async", command=program)
                    ids[number].append(started["execution_id"])
        for execution_id in ids[0]:
            await has_printed(clients[0], execution_id)
        ended: dict[str, dict[str, Any]] = {}

        async def wait(client: Client, execution_id: str) -> None:
            ended[execution_id] = await call(
                client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60
            )

        with anyio.fail_after(LOST_WITHIN_SECONDS + 60):
            async with anyio.create_task_group() as tasks:
                for execution_id in ids[0] + ids[1] + ids[2]:
                    tasks.start_soon(wait, clients[0], execution_id)
                mine[0].kill()
        for execution_id in ids[0]:
            assert ended[execution_id]["status"] == "failed"
            assert ended[execution_id]["termination_reason"] == "lost"
        for execution_id in ids[1] + ids[2]:
            assert ended[execution_id]["status"] == "completed"
        for execution_id in ids[0] + ids[1] + ids[2]:
            for client in clients:
                events = await whole_log(client, execution_id)
                check_log(events)
                assert counted(lines).startswith(printed(events))
                assert printed(events).startswith("1\n")
        listed = await call(clients[1], "list_executions", status="running")
        assert listed["executions"] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_what_waited_for_a_place_in_a_replica_that_is_gone_is_run_by_another(
    own_redis: RedisServer, tmp_path: Path, how: int
) -> None:
    one_place = {"SANDBOX_MAX_CONCURRENT": "1", "SANDBOX_MAX_PER_PRINCIPAL": "5"}
    with replicas(own_redis, tmp_path, 2, **SHORT_LEASE, **one_place) as (gone, other):
        async with connected(other.url) as client:
            async with connected(gone.url) as doomed:
                running = (await call(doomed, "execute_code_async", command="echo up; sleep 100"))["execution_id"]
                await has_printed(client, running)
                waiting = [
                    (await call(doomed, "execute_code_async", command=f"echo {number}"))["execution_id"]
                    for number in range(5)
                ]
            gone.process.send_signal(how)
            for number, execution_id in enumerate(waiting):
                said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                assert (said["status"], said["stdout"]) == ("completed", f"{number}\n")
                check_log(await whole_log(client, execution_id))
            said = await call(client, "get_execution_output", execution_id=running, wait=True, wait_seconds=60)
            assert said["termination_reason"] == ("lost" if how == signal.SIGKILL else "cancelled")
            check_log(await whole_log(client, running))


@pytest.fixture
def two(own_redis: RedisServer, tmp_path: Path) -> Iterator[list[Replica]]:
    with replicas(own_redis, tmp_path, 2, **SHORT_LEASE) as started:
        yield started


async def test_a_replica_that_sleeps_through_its_lease_ends_its_process_and_writes_nothing(two: list[Replica]) -> None:
    sleeper, other = two
    async with connected(other.url) as client:
        async with connected(sleeper.url) as doomed:
            started = await call(doomed, "execute_code_async", command="echo up; sleep 100; echo late")
        execution_id = started["execution_id"]
        await has_printed(client, execution_id)
        pause(sleeper.process.pid)
        said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
        assert said["termination_reason"] == "lost"
        before = await whole_log(client, execution_id)
        sleeper.process.send_signal(signal.SIGCONT)
        await until(lambda: sleeper.running() == 0, "the process of the lost execution is ended")
        after = await whole_log(client, execution_id)
        assert after == before
        check_log(after)
        assert printed(after) == "up\n"
    async with connected(sleeper.url) as client:
        assert (await call(client, "execute_code", command="echo again"))["stdout"] == "again\n"


@pytest.mark.parametrize("mode", MODES)
async def test_a_rolling_restart_under_load_fails_no_read_and_loses_nothing(
    own_redis: RedisServer, tmp_path: Path, mode: str
) -> None:
    lines = 30
    with (
        replicas(own_redis, tmp_path, SANDBOX_DRAIN_GRACE_SECONDS="60", SANDBOX_MAX_PER_SESSION="10") as mine,
        nginx(DEPLOY / "nginx" / "round-robin.conf", mine, tmp_path) as address,
    ):
        url = f"{address}/mcp"
        ids: list[str] = []
        reads = 0
        restarted = anyio.Event()

        async def produce() -> None:
            async with connected(url, mode) as client:
                while not restarted.is_set():
                    said = await client.call_tool("execute_code_async", {"command": COUNT.format(lines=lines)})
                    assert not said.is_error, structured(said)
                    ids.append(structured(said)["execution_id"])
                    await anyio.sleep(0.3)

        async def read() -> None:
            nonlocal reads
            async with connected(url, mode) as client:
                while not restarted.is_set():
                    await call(client, "list_executions")
                    for execution_id in ids[-3:]:
                        await call(client, "get_execution_status", execution_id=execution_id)
                        await call(
                            client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=0.2
                        )
                        reads += 3

        with anyio.fail_after(200):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce)
                for _ in range(3):
                    tasks.start_soon(read)
                for replica in mine:
                    replica.process.send_signal(signal.SIGTERM)
                    await anyio.to_thread.run_sync(replica.start_again)
                    await anyio.to_thread.run_sync(replica.wait_ready)
                restarted.set()
        assert reads > 20
        assert ids
        async with connected(url, mode) as client:
            for execution_id in ids:
                said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                assert said["status"] == "completed", said
                events = await whole_log(client, execution_id)
                check_log(events)
                assert printed(events) == counted(lines)


def _clock_library() -> str:
    """What the program `faketime` preloads. Not that itself: it stays in between, and its end is not the replica's."""
    return str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")))


async def test_clocks_that_disagree_by_an_hour_matter_to_nobody(own_redis: RedisServer, tmp_path: Path) -> None:
    need("faketime")
    skewed = {"LD_PRELOAD": _clock_library(), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "SANDBOX_RUNNER": "local"}
    with (
        replicas(own_redis, tmp_path, 1, FAKETIME="-3600s", **skewed) as one,
        replicas(own_redis, tmp_path, 1, FAKETIME="+3600s", **skewed) as two,
        replicas(own_redis, tmp_path, 1, SANDBOX_RUNNER="local") as three,
    ):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(each[0].url)) for each in (one, two, three)]
            ids = [
                (await call(client, "execute_code_async", command=COUNT.format(lines=150)))["execution_id"]
                for client in clients
            ]
            behind, ahead, right = [
                datetime.fromisoformat(
                    (await call(client, "get_execution_status", execution_id=execution_id))["created_at"]
                )
                for client, execution_id in zip(clients, ids, strict=True)
            ]
            half = timedelta(minutes=30)
            assert behind + half < right < ahead - half, "the clocks of the replicas do differ"
            for execution_id in ids:
                for client in clients:
                    said = await call(
                        client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60
                    )
                    assert said["status"] == "completed"
                    events = await whole_log(client, execution_id)
                    check_log(events)
                    assert printed(events) == counted(150)


async def test_a_draining_replica_takes_no_connection_and_what_it_runs_is_fed_through_others(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    with replicas(own_redis, tmp_path, 2, SANDBOX_DRAIN_GRACE_SECONDS="600") as (draining, other):
        async with connected(other.url) as client:
            async with connected(draining.url) as doomed:
                started = await call(doomed, "execute_code_async", command="cat", interactive=True)
            execution_id = started["execution_id"]
            await until(lambda: draining.running() == 1, "it runs")
            with httpx2.Client(base_url=f"http://127.0.0.1:{draining.port}", timeout=PATIENCE_SECONDS) as kept:
                assert "connection" not in kept.get("/health").headers
                draining.process.send_signal(signal.SIGTERM)
                await until(lambda: refuses_connections(draining), "it takes no connection any more")
                last = kept.get("/health")
                assert (last.status_code, last.headers["connection"]) == (503, "close")
            assert draining.process.poll() is None
            await call(client, "send_stdin", execution_id=execution_id, input_data="still here\n", end=True)
            said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
            assert (said["status"], said["stdout"]) == ("completed", "still here\n")
            assert await anyio.to_thread.run_sync(draining.process.wait, PATIENCE_SECONDS) == 0


async def test_a_long_poll_at_a_replica_that_ends_is_answered(own_redis: RedisServer, tmp_path: Path) -> None:
    with replicas(own_redis, tmp_path, 2) as (ending, other):
        async with connected(other.url) as client, connected(ending.url) as doomed:
            execution_id = (await call(client, "execute_code_async", command="cat", interactive=True))["execution_id"]
            answers: list[dict[str, Any]] = []
            # Else the client lists them after its first result, by a connection that nobody takes any more.
            await doomed.list_tools()

            async def wait() -> None:
                arguments = {"execution_id": execution_id, "wait": True, "wait_seconds": 600}
                answers.append(await call(doomed, "get_execution_output", **arguments))

            with anyio.fail_after(PATIENCE_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await until(lambda: own_redis.ask("PUBSUB", "NUMSUB", f"wake:{execution_id}")[1], "it waits")
                    ending.process.send_signal(signal.SIGTERM)
            assert answers[0]["status"] == "running"
            await call(client, "cancel_execution", execution_id=execution_id, force=True)


def refuses_connections(replica: Replica) -> bool:
    try:
        replica.health()
    except httpx2.ConnectError:
        return True
    return False


async def has_printed(client: Client, execution_id: str) -> None:
    """Wait for the first output after the event that says that the sandbox is ready."""
    await call(client, "get_execution_output", execution_id=execution_id, last_event_id="1", wait_seconds=60)
