"""Updates when things break, and behind a balancer: a listener hears of the end, whatever ended it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anyio
import pytest
from mcp.shared.subscriptions import ResourceUpdated

from tests.integration.mcp.harness import PATIENCE_SECONDS, call, connected, eventually
from tests.integration.replicas.harness import Replica, need, two_with_tokens
from tests.integration.replicas.test_notifications import caller, started, text_of
from tests.redis_server import RedisServer, running_redis

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

EVENT_SECONDS = 120.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    need("redis-server")
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def pair(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    with two_with_tokens(redis, tmp_path_factory.mktemp("faults")) as replicas:
        yield replicas


async def test_a_listener_outlives_a_restart_of_redis(pair: list[Replica], redis: RedisServer) -> None:
    here, there = pair
    async with caller(here) as listener, caller(there) as owner:
        execution_id = await started(owner)
        output = f"execution://{execution_id}/output"
        await call(owner, "get_execution_output", execution_id=execution_id, wait_seconds=60)
        with anyio.fail_after(EVENT_SECONDS):
            async with listener.listen(resource_subscriptions=[output]) as news:
                redis.stop()
                redis.start()
                eventually(lambda: all(replica.health().status_code == 200 for replica in pair), "they are back")
                await call(owner, "send_stdin", execution_id=execution_id, input_data="after\n", end=True)
                heard = [event async for event in news if isinstance(event, ResourceUpdated)]
        assert heard
        assert await text_of(listener, output) == "after\n"


async def test_a_listener_is_told_when_the_owner_is_killed(pair: list[Replica]) -> None:
    here, there = pair
    async with caller(here) as listener:
        async with caller(there) as owner:
            execution_id = await started(owner)
            await call(owner, "get_execution_output", execution_id=execution_id, wait_seconds=60)
        uri = f"execution://{execution_id}"
        try:
            with anyio.fail_after(EVENT_SECONDS):
                async with listener.listen(resource_subscriptions=[uri]) as news:
                    there.kill()
                    heard = [event.uri async for event in news if isinstance(event, ResourceUpdated)]
        finally:
            there.start_again()
            there.wait_ready()
        assert heard == [uri]
        said = json.loads(await text_of(listener, uri))
        assert (said["status"], said["termination_reason"]) == ("failed", "lost")


async def test_a_listener_behind_a_balancer_hears_at_once(balanced: str) -> None:
    async with connected(balanced) as client:
        for _ in range(3):
            execution_id = await started(client)
            output = f"execution://{execution_id}/output"
            with anyio.fail_after(PATIENCE_SECONDS):
                async with client.listen(resource_subscriptions=[output]) as news:
                    await call(client, "send_stdin", execution_id=execution_id, input_data="one\n")
                    while await text_of(client, output) != "one\n":
                        await anext(news)
                    await call(client, "send_stdin", execution_id=execution_id, input_data="", end=True)
                    async for _event in news:
                        pass
