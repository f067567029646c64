"""RabbitQueue when takers are killed, and when RabbitMQ is killed, away, or refuses."""

from __future__ import annotations

import logging
import os
import subprocess  # noqa: TID251  # takers that can be killed
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.doctor import diagnose
from sandbox_adapters.queues.rabbitmq import RabbitQueue
from sandbox_adapters.rabbitmq_connection import Fetched, NoAnswer, RabbitConnection
from sandbox_adapters.rabbitmq_options import RabbitOptions
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.settings import Settings
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import ClaimRefused, StoreUnavailable
from sandbox_core.domain.execution import Execution
from sandbox_core.ports.queue import Delivery, QueueItem
from sandbox_core.testing.queue_harness import everyone, item
from sandbox_core.testing.samples import OTHER_NODE, pending
from tests.contracts.rabbitmq_harness import BOUND_SECONDS, BUCKETS, Join, joining, take
from tests.rabbitmq_server import PASSWORD, RabbitServer
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def join(anyio_backend: str, rabbitmq_server: RabbitServer, redis_server: RedisServer) -> AsyncIterator[Join]:
    async with AsyncExitStack() as outer:
        yield joining(rabbitmq_server, redis_server, outer)


@pytest.fixture
async def store(anyio_backend: str, join: Join, redis_server: RedisServer) -> AsyncIterator[RedisStateStore]:
    options = RedisOptions(SecretStr(redis_server.url), prefix=join.prefix, timeout_seconds=10)
    async with RedisConnection(options) as connection, RedisStateStore(connection, SystemClock()) as opened:
        yield opened


@contextmanager
def taker(until: str, prefix: str, rabbit: RabbitServer, redis: RedisServer) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that takes and perhaps claims; yields when it has, and kills it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.contracts.rabbitmq_taker", until, prefix],
        env={"PATH": os.environ["PATH"], "AMQP_URL": rabbit.url, "REDIS_URL": redis.url},
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(BOUND_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


async def has_taken(process: subprocess.Popen[bytes]) -> str:
    """Return the id of what it has taken."""
    assert process.stdout is not None
    with anyio.fail_after(BOUND_SECONDS):
        return (await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)).decode().strip()


def item_of(execution: Execution) -> QueueItem:
    return QueueItem(execution.id, execution.principal, execution.session_id, execution.created_at)


async def nobody(_: QueueItem) -> bool:
    return False


async def answering(queue: RabbitQueue) -> None:
    """Return when the engine answers."""
    with anyio.fail_after(BOUND_SECONDS):
        while True:
            try:
                await queue.stats()
            except StoreUnavailable:
                await anyio.sleep(0.05)
            else:
                return


async def put_until_refused(queue: RabbitQueue) -> None:
    """Put until that is an error: RabbitMQ notices within a second or so what it is short of."""
    with anyio.fail_after(BOUND_SECONDS):
        while True:
            await queue.put(put := item("somebody else"))
            await queue.remove(put.execution_id)
            await anyio.sleep(0.05)


@pytest.mark.anyio
class TestTakersThatAreKilled:
    async def test_before_the_claim_and_another_one_that_waits_is_handed_it(
        self, join: Join, rabbitmq_server: RabbitServer, redis_server: RedisServer
    ) -> None:
        queue = await join()
        await queue.put(put := item())
        with taker("take", join.prefix, rabbitmq_server, redis_server) as process:
            assert await has_taken(process) == put.execution_id
            assert await queue.depth() == 0
            taken: list[Delivery] = []

            async def wait() -> None:
                taken.append(await queue.take(everyone))

            with anyio.fail_after(BOUND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await anyio.lowlevel.checkpoint()
                    process.kill()
        assert taken[0].item == put
        await queue.done(taken[0])
        assert await queue.waiting([put.execution_id.encode()]) == set()

    async def test_between_claim_and_acknowledgement_and_the_claim_is_refused_to_whoever_is_handed_it(
        self, join: Join, store: RedisStateStore, rabbitmq_server: RabbitServer, redis_server: RedisServer
    ) -> None:
        queue = await join()
        execution = await store.create(pending(SystemClock()))
        await queue.put(item_of(execution))
        with taker("claim", join.prefix, rabbitmq_server, redis_server) as process:
            assert await has_taken(process) == execution.id
        again = await take(queue)
        assert again.item == item_of(execution)
        with pytest.raises(ClaimRefused):
            await store.claim(execution.id, OTHER_NODE, lease_seconds=60)
        await queue.done(again)
        assert await queue.waiting([execution.id.encode()]) == set()

    async def test_what_a_dead_taker_held_counts_again_when_nobody_takes_it(
        self, join: Join, redis_server: RedisServer
    ) -> None:
        queue = await join(max_depth=1)
        async with AsyncExitStack() as life:
            dying = await join(stack=life)
            await dying.put(put := item())
            await take(dying)
        assert await queue.depth() == 0
        redis_server.ask("ZADD", f"{join.prefix}:queue:rabbitmq:held", 1, put.execution_id)
        assert await queue.depth() == 1
        assert await queue.remove(put.execution_id)
        await queue.put(other := item())
        assert (await take(queue)).item == other


@pytest.mark.anyio
class TestRabbitMQIsKilled:
    async def test_with_items_waiting_and_they_are_all_there_when_it_is_back(
        self, own_rabbitmq: RabbitServer, redis_server: RedisServer, anyio_backend: str
    ) -> None:
        async with AsyncExitStack() as stack:
            join = joining(own_rabbitmq, redis_server, stack)
            queue = await join()
            # Half a second later RabbitMQ writes to disk which queues it has, and tells nobody. Killed before, it loses
            # some: see the next test.
            await anyio.sleep(2)
            puts = [item(f"p{number}", f"s{number}") for number in range(2 * BUCKETS)]
            for put in puts:
                await queue.put(put)
            held = await take(queue)
            claimed = await take(queue)
            learnt = anyio.Event()

            async def wait() -> None:
                with pytest.raises(StoreUnavailable, match="RabbitMQ at 127"):
                    await queue.take(nobody)
                learnt.set()

            with anyio.fail_after(BOUND_SECONDS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await anyio.lowlevel.checkpoint()
                    await anyio.to_thread.run_sync(own_rabbitmq.kill)
                    await learnt.wait()
            with pytest.raises(StoreUnavailable):
                await queue.depth()
            with pytest.raises(StoreUnavailable):
                await queue.put(item())
            await queue.done(claimed)
            await queue.give_back(held)
            newcomer = await join()
            with pytest.raises(StoreUnavailable, match="RabbitMQ at 127"):
                await newcomer.stats()
            await anyio.to_thread.run_sync(own_rabbitmq.start)
            await answering(queue)
            assert await queue.depth() == 2 * BUCKETS - 1
            served = []
            for _ in range(2 * BUCKETS - 1):
                delivery = await take(queue)
                await queue.done(delivery)
                served.append(delivery.item)
            assert {one.execution_id for one in served} == {one.execution_id for one in puts} - {
                claimed.item.execution_id
            }
            await newcomer.put(late := item())
            assert (await take(newcomer)).item == late

    async def test_is_short_of_memory_which_is_said_and_costs_no_queue(
        self, own_rabbitmq: RabbitServer, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with AsyncExitStack() as stack:
            queue = await joining(own_rabbitmq, redis_server, stack)()
            await queue.put(before := item())
            await anyio.to_thread.run_sync(own_rabbitmq.be_short_of_memory, True)
            with pytest.raises(StoreUnavailable, match="is short of memory or disk, and takes no more"):
                await put_until_refused(queue)
            # What waits is handed out all the same, over a connection that has put nothing.
            await answering(queue)
            assert (await take(queue)).item == before
            await anyio.to_thread.run_sync(own_rabbitmq.be_short_of_memory, False)
            await answering(queue)
            await queue.put(item("somebody else"))
        assert "delete it" not in caplog.text

    async def test_and_has_lost_a_queue_and_the_others_are_served_and_put_to(
        self, rabbitmq_server: RabbitServer, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with AsyncExitStack() as stack:
            join = joining(rabbitmq_server, redis_server, stack)
            queue, other = await join(), await join()
            puts = [item(f"p{number}") for number in range(3)]
            for put in puts:
                await queue.put(put)
            fetch, send = RabbitConnection.fetch, RabbitConnection.put

            async def fetch_stuck(connection: RabbitConnection, bucket: int) -> Fetched | None:
                if bucket == 0:
                    raise NoAnswer("bucket 0")
                return await fetch(connection, bucket)

            async def put_stuck(connection: RabbitConnection, bucket: int, message_id: str, body: bytes) -> None:
                if bucket in (0, 3):
                    raise NoAnswer(f"bucket {bucket}")
                await send(connection, bucket, message_id, body)

            monkeypatch.setattr(RabbitConnection, "fetch", fetch_stuck)
            monkeypatch.setattr(RabbitConnection, "put", put_stuck)
            with pytest.raises(NoAnswer):
                await queue.take(everyone)
            assert [(await take(queue)).item for _ in range(2)] == puts[1:]
            with pytest.raises(NoAnswer):
                await other.put(item("late"))
            await other.put(late := item("late"))
            assert (await take(queue)).item == late
            redis_server.ask("HSET", f"{join.prefix}:queue:rabbitmq:missed", "0", 1)
            with pytest.raises(NoAnswer):
                await other.take(everyone)
            assert await other.waiting([puts[0].execution_id.encode()]) == set()
            await other.put(puts[0])
            assert (await take(queue)).item == puts[0]


@pytest.mark.anyio
async def test_it_counts_that_a_broker_is_away_once_for_each_call() -> None:
    options = RabbitOptions(SecretStr("amqp://127.0.0.1:1/"), timeout_seconds=0.2)
    async with RabbitConnection(options, buckets=1) as connection:
        with pytest.raises(StoreUnavailable):
            await connection.ready()
        assert (connection.asked, connection.failed) == (0, 1)
        with pytest.raises(StoreUnavailable):
            await connection.fetch(0)
        assert (connection.asked, connection.failed) == (1, 2)


@pytest.mark.anyio
class TestPassword:
    @pytest.mark.parametrize("trouble", ["none", "refused", "away", "no such host"])
    async def test_it_is_never_shown(
        self,
        trouble: str,
        rabbitmq_server: RabbitServer,
        redis_server: RedisServer,
        caplog: pytest.LogCaptureFixture,
        anyio_backend: str,
    ) -> None:
        url, shown = rabbitmq_server.url, PASSWORD
        match trouble:
            case "refused":
                url, shown = url.replace(PASSWORD, "drowned%2Fbell"), "drowned"
            case "away":
                url = url.replace(str(rabbitmq_server.port), "1")
            case "no such host":
                url = url.replace("127.0.0.1", "nowhere.invalid")
        said = ""
        for name in ("aio_pika", "aiormq"):
            caplog.set_level(logging.DEBUG, logger=name)
        with caplog.at_level(logging.DEBUG):
            try:
                rabbit = RabbitOptions(
                    SecretStr(url), prefix="p", timeout_seconds=20 if trouble in ("none", "refused") else 2
                )
                async with RabbitConnection(rabbit, buckets=1) as connection:
                    said += repr(connection) + repr(rabbit)
                    await connection.put(0, "id", b"body")
                    found = await connection.fetch(0)
                    assert found is not None
                    await connection.acknowledge(found)
            except StoreUnavailable as error:
                assert trouble != "none"
                said += f"{error!r} {error} {error.__cause__!r}"
            else:
                assert trouble == "none"
        if trouble == "refused":
            assert "refuses the user or the password" in said
        assert shown not in said + caplog.text
        for record in caplog.records:
            assert shown not in repr(record.__dict__)

    async def test_over_tls_it_is_sent_to_a_broker_that_the_named_authority_vouches_for(
        self, rabbitmq_server: RabbitServer, anyio_backend: str
    ) -> None:
        url = f"{rabbitmq_server.tls_url}?cafile={rabbitmq_server.certificate}"
        options = RabbitOptions(SecretStr(url), prefix="tls", timeout_seconds=20)
        async with RabbitConnection(options, buckets=1) as connection:
            await connection.put(0, "id", b"body")
            found = await connection.fetch(0)
            assert found is not None
            assert (found.message_id, found.body) == ("id", b"body")
            await connection.acknowledge(found)

    async def test_a_certificate_that_nobody_vouches_for_is_refused(
        self, rabbitmq_server: RabbitServer, anyio_backend: str
    ) -> None:
        options = RabbitOptions(SecretStr(rabbitmq_server.tls_url), prefix="tls", timeout_seconds=20)
        async with RabbitConnection(options, buckets=1) as connection:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                connection.check()

    async def test_doctor_tells_of_rabbitmq_and_shows_no_password(
        self, rabbitmq_server: RabbitServer, redis_server: RedisServer, anyio_backend: str
    ) -> None:
        for url, works in ((rabbitmq_server.url, True), (rabbitmq_server.url.replace("/%2F", "/no-such"), False)):
            given = {
                "redis_url": redis_server.url,
                "queue_url": url,
                "local_runner": False,
                "redis_timeout_seconds": 10,
            }
            found = [
                check for check in (await diagnose(Settings.model_validate(given))).checks if check.name == "RabbitMQ"
            ]
            assert [check.ok for check in found] == [works], found
            assert PASSWORD not in repr(found)

    async def test_a_user_that_may_not_put_is_told_what_it_lacks_before_the_first_submission(
        self, own_rabbitmq: RabbitServer, redis_server: RedisServer, anyio_backend: str
    ) -> None:
        documented = (ROOT / "docs" / "deployment.md").read_text()
        all_of_it = (r"^sandbox\.", r"^(sandbox\.|amq\.default$)", r"^sandbox\.")
        assert f"configure and read `{all_of_it[0]}`, and write `{all_of_it[1]}`" in documented
        given = {
            "redis_url": redis_server.url,
            "queue_url": own_rabbitmq.url.replace(f"tests:{PASSWORD}", f"limited:{PASSWORD}"),
            "local_runner": False,
            "redis_timeout_seconds": 10,
        }
        await anyio.to_thread.run_sync(own_rabbitmq.control, "add_user", "limited", PASSWORD)
        # What it lacks to put, what it lacks to declare, and nothing.
        for permissions in ((all_of_it[0],) * 3, ("^none$",) * 3, all_of_it):
            await anyio.to_thread.run_sync(own_rabbitmq.control, "set_permissions", "limited", *permissions)
            checks = (await diagnose(Settings.model_validate(given))).checks
            (found,) = [check for check in checks if check.name == "RabbitMQ"]
            assert found.ok is (permissions == all_of_it), found
            assert found.ok or "does not give its user all permissions: configure" in found.detail
