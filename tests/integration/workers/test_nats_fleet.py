"""A server that runs nothing and two workers; the queue is in a real NATS that wants a password, the state in Redis."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251  # the command under test is a program
from collections import Counter
from collections.abc import Iterator
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
from tests.integration.workers.harness import LEASE_SECONDS, Fleet, fleet
from tests.nats_server import NatsServer, running_nats
from tests.redis_server import running_redis

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

PASSWORD = "s3cr3t-of-the-queue"
QUEUED_FOR_LONG = "sandbox_waiting"


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

    def waiting(self) -> int:
        """Return how many items are in the stream, taken ones too."""
        return int(self.nats.state(QUEUED_FOR_LONG)["messages"])


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    need("redis-server")
    directory = tmp_path_factory.mktemp("nats-fleet")
    with running_redis() as redis, running_nats(user="sandbox", password=PASSWORD) as nats:
        url = f"nats://sandbox:{PASSWORD}@127.0.0.1:{nats.port}"
        with fleet(redis, directory, servers=1, workers=2, SANDBOX_QUEUE_URL=url) as started:
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
    for stream in (QUEUED_FOR_LONG, "sandbox_held"):
        await until(lambda: not programs.nats.state(stream)["messages"], f"{stream} is empty")  # noqa: B023


async def test_fifty_executions_run_once_each_on_both_workers(programs: Programs) -> None:
    async with connected(programs.fleet.servers[0].url) as client:
        ids = [await submit(client, f"echo {number}; sleep 1", number % 5) for number in range(6)]
        await until(lambda: all(worker.told()["running"] == 3 for worker in programs.fleet.workers), "both work")
        ids += [await submit(client, f"echo {number}", number % 5) for number in range(6, 50)]
        assert [await end_of(client, one) for one in ids] == [f"{number}\n" for number in range(50)]
    await nothing_is_left(programs)


async def test_what_waits_is_counted_and_can_be_cancelled(programs: Programs) -> None:
    server = programs.fleet.servers[0]
    async with connected(server.url) as client:
        running = [await submit(client, "cat", number) for number in range(6)]
        holding = [await call(client, "execute_code_async", command="sleep 100") for _ in range(6)]
        waits = await submit(client, "echo never")
        await until(lambda: server.told()["queued"] >= 1, "it is counted")
        said = await call(client, "cancel_execution", execution_id=waits, force=True)
        assert said["status"] in {"cancelled", "cancelling"}
        for one in [*running, *(each["execution_id"] for each in holding)]:
            await call(client, "cancel_execution", execution_id=one, force=True)
        assert (await call(client, "get_execution_status", execution_id=waits))["status"] == "cancelled"
    await nothing_is_left(programs)


async def test_what_a_dead_taker_had_not_claimed_is_run_by_a_worker(programs: Programs) -> None:
    async with connected(programs.fleet.servers[0].url) as client:
        for worker in programs.fleet.workers:
            worker.pause()
        try:
            started = await submit(client, "echo once")
            async with (
                NatsConnection(NatsOptions(SecretStr(programs.url))) as connection,
                JetStreamQueue(connection=connection, visibility_seconds=LEASE_SECONDS) as dying,
            ):
                with anyio.fail_after(30):
                    assert (await dying.take(everyone)).item.execution_id == started
        finally:
            for worker in programs.fleet.workers:
                worker.resume()
        assert await end_of(client, started) == "once\n"
    await nothing_is_left(programs)


async def test_nats_killed_and_restarted_with_executions_waiting_loses_none(programs: Programs) -> None:
    server = programs.fleet.servers[0]
    async with connected(server.url) as client:
        ids = [
            await submit(client, f"sleep {2 if number < 6 else 0}; echo {number}", number % 3) for number in range(24)
        ]
        assert programs.waiting()
        programs.nats.kill()
        await until(lambda: server.health().status_code == 503, "health tells that the queue is away")
        programs.nats.start()
        await until(lambda: server.health().status_code == 200, "health tells that it is back", seconds=60)
        assert [await end_of(client, one) for one in ids] == [f"{number}\n" for number in range(24)]
    await nothing_is_left(programs)


async def test_a_killed_worker_costs_only_what_it_ran(programs: Programs) -> None:
    victim = programs.fleet.workers[0]
    async with connected(programs.fleet.servers[0].url) as client:
        ids = [await submit(client, f"sleep 1; echo {number}") for number in range(20)]
        await until(lambda: victim.told()["running"], "it works")
        victim.kill()
        ended = Counter[str]()
        for one in ids:
            with anyio.fail_after(90):
                await until(partial(has_ended, client, one), "it ends", seconds=90)
            said = await call(client, "get_execution_status", execution_id=one)
            ended[said["termination_reason"]] += 1
            check_log(await whole_log(client, one))
        victim.start_again()
        victim.wait_ready()
    assert set(ended) <= {"exited", "lost"}, ended
    assert 1 <= ended["lost"] <= 3, ended
    assert ended.total() == 20
    await nothing_is_left(programs)


async def has_ended(client: Client, execution_id: str) -> bool:
    said = await call(client, "get_execution_status", execution_id=execution_id)
    return said["status"] not in {"pending", "running"}


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
