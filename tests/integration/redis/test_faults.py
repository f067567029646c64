"""Redis is restarted, killed, paused, full, read-only or away: programs run on, no output is lost or doubled."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from sandbox_adapters.redis_connection import CONNECTED
from sandbox_adapters.sandbox import Sandbox, open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.domain.errors import InfrastructureError, StoreUnavailable
from sandbox_core.domain.events import OutputEvent
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.testing.samples import pending, printed
from tests.integration.redis.conftest import ANSWER_SECONDS, CLOCK, claimed, opened
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

_BOUND_SECONDS = 120
_FAST_SECONDS = 30.0
"""Far over what a busy machine takes for three answers of a second each, under the wait for one that never comes."""

_COUNTING = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; echo end >&2; exit 3"


@asynccontextmanager
async def sandbox_on(server: RedisServer, timeout_seconds: float = ANSWER_SECONDS) -> AsyncIterator[Sandbox]:
    """Open a sandbox whose state is on this server, with the runner that starts fastest."""
    settings = Settings.model_validate(
        {"redis_url": server.url, "redis_timeout_seconds": timeout_seconds, "runner": "local", "log_file": ""}
    )
    async with open_sandbox(settings) as sandbox:
        yield sandbox


async def log_of(sandbox: Sandbox, execution_id: str) -> list[OutputEvent]:
    events = [event async for event in sandbox.follow(execution_id)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.kind.is_terminal for event in events] == [False] * (len(events) - 1) + [True]
    return events


async def until(sandbox: Sandbox, status: str) -> None:
    """Wait until the health is this."""
    with anyio.fail_after(_BOUND_SECONDS):
        while (await sandbox.health()).status != status:
            await anyio.lowlevel.checkpoint()


def restart(server: RedisServer) -> None:
    server.stop()
    server.start()


def kill_and_start(server: RedisServer) -> None:
    server.kill()
    server.start()


def cut_connections(server: RedisServer) -> None:
    for kind in ("pubsub", "normal"):
        server.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


@pytest.mark.parametrize("fault", [restart, kill_and_start, cut_connections])
async def test_a_program_runs_on_while_redis_restarts(
    own_redis: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    with anyio.fail_after(_BOUND_SECONDS):
        async with sandbox_on(own_redis) as sandbox:
            execution_id = await sandbox.submit(_COUNTING)
            await sandbox.service.wait(sandbox.principal, execution_id, after=3)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_ends_with_everything, sandbox, execution_id)
                await anyio.to_thread.run_sync(fault, own_redis)
            await _ends_with_everything(sandbox, execution_id)
            assert [line async for line in sandbox.follow(execution_id)] == await log_of(sandbox, execution_id)


@pytest.mark.parametrize("fault", ["pause", "stop", "full", "replica"])
async def test_reads_fail_fast_and_output_waits_while_redis_takes_nothing(own_redis: RedisServer, fault: str) -> None:
    begin: dict[str, Callable[[], object]] = {
        "pause": own_redis.pause,
        "stop": own_redis.stop,
        "full": lambda: own_redis.ask("CONFIG", "SET", "maxmemory", 1),
        "replica": lambda: own_redis.ask("REPLICAOF", "127.0.0.1", 1),
    }
    finish: dict[str, Callable[[], object]] = {
        "pause": own_redis.resume,
        "stop": own_redis.start,
        "full": lambda: own_redis.ask("CONFIG", "SET", "maxmemory", 0),
        "replica": lambda: own_redis.ask("REPLICAOF", "NO", "ONE"),
    }
    with anyio.fail_after(_BOUND_SECONDS):
        # Where nothing answers that is known by the time alone.
        async with sandbox_on(own_redis, 1 if fault == "pause" else ANSWER_SECONDS) as sandbox:
            execution_id = await sandbox.submit(_COUNTING)
            await sandbox.service.wait(sandbox.principal, execution_id, after=3)
            begin[fault]()
            try:
                await until(sandbox, "unavailable")
                began = time.monotonic()
                if fault in ("pause", "stop"):
                    with pytest.raises(StoreUnavailable, match=r"Redis at 127\.0\.0\.1"):
                        await sandbox.service.get(sandbox.principal, execution_id)
                else:
                    assert (await sandbox.service.get(sandbox.principal, execution_id)).id == execution_id
                with pytest.raises(InfrastructureError):
                    await sandbox.submit("true")
                assert time.monotonic() - began < _FAST_SECONDS
                assert sandbox.supervisor.running == 1
            finally:
                finish[fault]()
            await until(sandbox, "ok")
            await _ends_with_everything(sandbox, execution_id)


async def test_a_server_starts_without_redis_and_works_when_it_comes(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own_redis.stop()
    # Nothing listens, which is known at once; the rest is about a Redis that works, however slow the machine is.
    async with sandbox_on(own_redis) as sandbox:
        assert (await sandbox.health()).status == "unavailable"
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await sandbox.run("true")
        assert CONNECTED not in caplog.text
        own_redis.start()
        await until(sandbox, "ok")
        assert (await sandbox.run("echo here")).stdout == b"here\n"
        with anyio.fail_after(_BOUND_SECONDS):
            while CONNECTED not in caplog.text:
                await anyio.lowlevel.checkpoint()
    assert caplog.text.count(CONNECTED) == 1


async def test_a_full_redis_leaves_leases_to_their_owners(own_redis: RedisServer) -> None:
    async with opened(own_redis) as store:
        claim = await claimed(store, lease_seconds=0.05)
        own_redis.ask("CONFIG", "SET", "maxmemory", 1)
        assert [lease.token for lease in await store.renew([claim.lease], lease_seconds=60)] == [claim.lease.token]
        assert list(await store.lapsed()) == []
        with pytest.raises(StoreUnavailable, match="out of memory"):
            await store.append(claim.lease, [printed(CLOCK, b"a")])
        own_redis.ask("CONFIG", "SET", "maxmemory", 0)
        assert await store.append(claim.lease, [printed(CLOCK, b"a")]) == 1


async def test_a_waiter_outlasts_a_restart(own_redis: RedisServer) -> None:
    async with opened(own_redis) as owner, opened(own_redis) as reader:
        claim = await claimed(owner)
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(reader.wait, claim.lease.execution_id, after=0))
                channels = reader._wakes._channels
                while not any(channel.known for channel in channels.values()):
                    await anyio.lowlevel.checkpoint()
                await anyio.to_thread.run_sync(kill_and_start, own_redis)
                # Perhaps nobody is subscribed yet: the news of this is lost then, and healed by looking again.
                await owner.append(claim.lease, [printed(CLOCK, b"a")])


async def test_a_waiter_of_what_is_written_here_outlasts_a_restart_before_it_asks_redis(own_redis: RedisServer) -> None:
    async with opened(own_redis) as store:
        claim = await claimed(store)
        with anyio.fail_after(_BOUND_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(store.wait, claim.lease.execution_id, after=0))
                await anyio.wait_all_tasks_blocked()
                own_redis.kill()
                await anyio.sleep(2)
                own_redis.start()
                assert await store.append(claim.lease, [printed(CLOCK, b"a")]) == 1


async def _ends_with_everything(sandbox: Sandbox, execution_id: ExecutionId) -> None:
    result = await sandbox.wait(execution_id)
    assert (result.status, result.exit_code) == (ExecutionStatus.COMPLETED, 3)
    assert result.stdout == b"".join(b"line %d\n" % number for number in range(400))
    assert result.stderr == b"end\n"
    await log_of(sandbox, execution_id)


async def test_what_was_to_be_forgotten_while_redis_was_away_does_not_start_later(own_redis: RedisServer) -> None:
    with anyio.fail_after(_BOUND_SECONDS):
        async with opened(own_redis) as store:
            refused = await store.create(pending(CLOCK))
            own_redis.stop()
            with pytest.raises(StoreUnavailable):
                await store.discard(refused.id)
            own_redis.start()
            while own_redis.ask("EXISTS", f"execution:{refused.id}"):
                await anyio.lowlevel.checkpoint()
