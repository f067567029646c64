"""A server that runs nothing and two workers; the queue is in a real NATS that wants a password, the state in Redis."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251  # the command under test is a program
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import pytest
from mcp import Client
from pydantic import SecretStr

from sandbox_adapters.nats_connection import NatsConnection
from sandbox_adapters.nats_options import NatsOptions
from sandbox_adapters.queue_engines import engine_check
from sandbox_adapters.queues.jetstream import JetStreamQueue
from sandbox_adapters.settings import Settings
from sandbox_core.testing.queue_harness import everyone
from tests.integration.mcp.harness import call, connected, environment, sandbox_program, until
from tests.integration.replicas.harness import check_log, need, whole_log
from tests.integration.workers.harness import LEASE_SECONDS, SHORT_LEASE_SECONDS, Fleet, fleet
from tests.nats_server import NatsServer, running_nats
from tests.redis_server import running_redis

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

PASSWORD = "s3cr3t-of-the-queue"
STREAM = "sandbox_waiting"


@dataclass
class Programs:
    """Everything that runs."""

    fleet: Fleet
    nats: NatsServer

    @property
    def url(self) -> str:
        """Where the queue is, with user and password."""
        return f"nats://sandbox:{PASSWORD}@127.0.0.1:{self.nats.port}"

    def logs(self) -> str:
        """Return what all servers and workers have written."""
        return "".join(one.log.read_text() for one in (*self.fleet.servers, *self.fleet.workers))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    need("redis-server")
    directory = tmp_path_factory.mktemp("nats-fleet")
    with running_redis() as redis, running_nats(user="sandbox", password=PASSWORD) as nats:
        url = f"nats://sandbox:{PASSWORD}@127.0.0.1:{nats.port}"
        with fleet(
            redis, directory, servers=1, workers=2, lease_seconds=LEASE_SECONDS, SANDBOX_QUEUE_URL=url
        ) as started:
            yield Programs(started, nats)


async def end_of(client: Client, execution_id: str) -> str:
    """Return what it printed; it must have completed, with one terminal event."""
    with anyio.fail_after(90):
        while True:
            said = await call(client, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=20)
            if said["status"] not in {"pending", "running"}:
                break
    assert said["status"] == "completed", said
    check_log(await whole_log(client, execution_id))
    return str(said["stdout"])


async def submit(client: Client, command: str, session: int = 0) -> str:
    said = await call(client, "execute_code_async", command=command, session_id=f"s{session}")
    return str(said["execution_id"])


async def nothing_is_left(programs: Programs) -> None:
    for stream in (STREAM, "sandbox_held"):
        await until(lambda: not programs.nats.state(stream)["messages"], f"{stream} is empty")  # noqa: B023


async def blocked(programs: Programs, client: Client) -> list[str]:
    """Fill every place of both workers with an execution that waits for its input; return their ids."""
    ids = [
        (await call(client, "execute_code_async", command="cat", interactive=True))["execution_id"] for _ in range(6)
    ]
    await until(lambda: [worker.told()["running"] for worker in programs.fleet.workers] == [3, 3], "both work")

    async def claimed() -> bool:
        told = [(await call(client, "get_execution_status", execution_id=one))["status"] for one in ids]
        return set(told) == {"running"}

    await until(claimed, "all are claimed: a worker counts what it is about to claim")
    return ids


async def unblock(client: Client, ids: Sequence[str]) -> None:
    """Let them end, and check that they do."""
    for number, one in enumerate(ids):
        await call(client, "send_stdin", execution_id=one, input_data=f"b{number}\n", end=True)
    assert [await end_of(client, one) for one in ids] == [f"b{number}\n" for number in range(len(ids))]


async def test_fifty_executions_run_once_each_on_both_workers(programs: Programs) -> None:
    async with connected(programs.fleet.servers[0].url) as client:
        first = await blocked(programs, client)
        ids = [await submit(client, f"echo {number}", number % 5) for number in range(44)]
        assert programs.fleet.servers[0].told()["queued"] == 44
        await unblock(client, first)
        assert [await end_of(client, one) for one in ids] == [f"{number}\n" for number in range(44)]
    await nothing_is_left(programs)


async def test_what_waits_is_counted_and_can_be_cancelled(programs: Programs) -> None:
    server = programs.fleet.servers[0]
    async with connected(server.url) as client:
        first = await blocked(programs, client)
        waits = await submit(client, "echo never")
        assert server.told()["queued"] == 1
        await call(client, "cancel_execution", execution_id=waits)
        assert (await call(client, "get_execution_status", execution_id=waits))["status"] == "cancelled"
        assert server.told()["queued"] == 0
        await unblock(client, first)
    await nothing_is_left(programs)


async def test_what_a_dead_taker_had_not_claimed_is_run_by_a_worker(programs: Programs) -> None:
    async with connected(programs.fleet.servers[0].url) as client:
        for worker in programs.fleet.workers:
            worker.pause()
        try:
            started = await submit(client, "echo once")
            async with (
                NatsConnection(NatsOptions(SecretStr(programs.url))) as connection,
                JetStreamQueue(connection=connection, visibility_seconds=SHORT_LEASE_SECONDS) as dying,
            ):
                with anyio.fail_after(60):
                    assert (await dying.take(everyone)).item.execution_id == started
        finally:
            for worker in programs.fleet.workers:
                worker.resume()
        assert await end_of(client, started) == "once\n"
    await nothing_is_left(programs)


async def test_nats_killed_and_restarted_with_executions_waiting_loses_none(programs: Programs) -> None:
    server = programs.fleet.servers[0]
    async with connected(server.url) as client:
        first = await blocked(programs, client)
        ids = [await submit(client, f"echo {number}", number % 3) for number in range(18)]
        programs.nats.kill()
        await until(lambda: server.health().status_code == 503, "health tells that the queue is away")
        await unblock(client, first)
        programs.nats.start()
        await until(lambda: server.health().status_code == 200, "health tells that it is back")
        assert [await end_of(client, one) for one in ids] == [f"{number}\n" for number in range(18)]
    await nothing_is_left(programs)


async def test_a_killed_worker_costs_only_what_it_ran(programs: Programs) -> None:
    victim = programs.fleet.workers[0]
    async with connected(programs.fleet.servers[0].url) as client:
        first = await blocked(programs, client)
        ids = [await submit(client, f"echo {number}") for number in range(10)]
        victim.kill()

        async def lost() -> list[str]:
            told = [(await call(client, "get_execution_status", execution_id=one)) for one in first]
            return [one["execution_id"] for one in told if one.get("termination_reason") == "lost"]

        await until(partial(are_three, lost), "what it ran is lost")
        gone = await lost()
        await unblock(client, [one for one in first if one not in gone])
        assert [await end_of(client, one) for one in ids] == [f"{number}\n" for number in range(10)]
        for one in gone:
            check_log(await whole_log(client, one))
    victim.start_again()
    victim.wait_ready()
    await nothing_is_left(programs)


async def are_three(found: Callable[[], Awaitable[list[str]]]) -> bool:
    return len(await found()) == 3


async def test_what_is_stored_and_not_in_the_queue_is_queued_again_and_run(programs: Programs) -> None:
    async with connected(programs.fleet.servers[0].url) as client:
        for worker in programs.fleet.workers:
            worker.pause()
        try:
            started = await submit(client, "echo found")
            programs.nats.forget_everything()
            programs.fleet.redis.ask("ZADD", "waiting", 1, started)
        finally:
            for worker in programs.fleet.workers:
                worker.resume()
        assert await end_of(client, started) == "found\n"


async def test_doctor_tells_whether_nats_answers_and_no_log_has_the_password(programs: Programs) -> None:
    def diagnose() -> str:
        given = environment(REDIS_URL=programs.fleet.redis.url, SANDBOX_QUEUE_URL=programs.url)
        command = [sandbox_program(), "doctor", "--json"]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False).stdout

    said = await anyio.to_thread.run_sync(diagnose)
    good = next(check for check in json.loads(said)["checks"] if check["name"] == "NATS")
    assert good["ok"]
    assert "with JetStream" in good["detail"]
    wrong = Settings(
        redis_url=SecretStr(programs.fleet.redis.url), queue_url=SecretStr(programs.url.replace(PASSWORD, "9f3wrong"))
    )
    bad = await engine_check(wrong)
    assert bad is not None
    assert not bad.ok
    assert "refuses the user or the password" in bad.detail
    assert "9f3wrong" not in repr(bad)
    assert PASSWORD not in said + programs.logs()
    assert "NATS connected" in programs.logs()
