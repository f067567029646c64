"""Older clients with sessions: a stream that broke goes on after Last-Event-ID, wherever the client asks."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.integration.mcp.harness import connected, older_session
from tests.integration.replicas.harness import DEPLOY, Replica, nginx, replicas
from tests.integration.replicas.test_any_replica import use_everything
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

TOKENS = {"alice": "a" * 40, "bob": "b" * 40}
LINES = "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done"
PATIENCE_SECONDS = 80


@pytest.fixture
def two(own_redis: RedisServer, tmp_path: Path) -> Iterator[list[Replica]]:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    with replicas(
        own_redis,
        tmp_path,
        2,
        SANDBOX_OLDER_SESSIONS="sticky",
        SANDBOX_AUTH_TOKENS_FILE=str(tokens),
        SANDBOX_DRAIN_GRACE_SECONDS="60",
    ) as started:
        yield started


@asynccontextmanager
async def http_of(name: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKENS[name]}"}
    async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(120)) as http:
        yield http


async def events_of(response: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield the id and the message of each event of a stream."""
    event_id = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: ") and line[6:].strip():
            yield event_id, json.loads(line[6:])


async def started_and_broken_off(http: httpx2.AsyncClient, url: str, session: dict[str, str]) -> str:
    """Start a call that reports progress, leave it at its first event, and return that event's id."""
    call = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {
            "name": "execute_code",
            "arguments": {
                "command": "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done",
                "on_disconnect": "detach",
            },
            "_meta": {"progressToken": "p"},
        },
    }
    async with http.stream("POST", url, json=call, headers=session) as response:
        assert response.status_code == 200
        async for event_id, _ in events_of(response):
            return event_id
    raise AssertionError("no event came")


async def resumed(http: httpx2.AsyncClient, url: str, session: dict[str, str], event_id: str) -> list[dict[str, Any]]:
    """Return every message that a resumed stream brings, until its end or the answer."""
    found = []
    headers = {**session, "Last-Event-ID": event_id, "Accept": "text/event-stream"}
    async with http.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async for _, message in events_of(response):
            found.append(message)
            if "result" in message or "error" in message:
                break
    return found


@pytest.mark.parametrize("where", [0, 1])
async def test_a_broken_stream_goes_on_here_and_elsewhere(two: list[Replica], where: int) -> None:
    async with http_of("alice") as http:
        session = await older_session(http, two[0].url)
        with anyio.fail_after(PATIENCE_SECONDS):
            stopped_at = await started_and_broken_off(http, two[0].url, session)
            messages = await resumed(http, two[where].url, session, stopped_at)
        assert messages[-1]["id"] == 7
        said = messages[-1]["result"]["structuredContent"]
        assert said["stdout"] == "".join(f"line {number}\n" for number in range(1, 7))
        progress = [message["params"]["progress"] for message in messages[:-1]]
        assert progress == sorted(set(progress))
        assert {message["method"] for message in messages[:-1]} == {"notifications/progress"}


async def test_an_answer_given_by_a_replica_that_then_ended_is_there(two: list[Replica]) -> None:
    gone, other = two
    async with http_of("alice") as http:
        session = await older_session(http, gone.url)
        with anyio.fail_after(PATIENCE_SECONDS):
            stopped_at = await started_and_broken_off(http, gone.url, session)
            gone.process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(gone.process.wait)
            messages = await resumed(http, other.url, session, stopped_at)
        assert messages[-1]["result"]["structuredContent"]["status"] == "completed"
        await anyio.to_thread.run_sync(gone.start_again)
        await anyio.to_thread.run_sync(gone.wait_ready)
        with anyio.fail_after(PATIENCE_SECONDS):
            again = await resumed(http, gone.url, session, stopped_at)
        assert again == messages


async def test_nobody_else_resumes_it(two: list[Replica], own_redis: RedisServer) -> None:
    async with http_of("alice") as alice, http_of("bob") as bob:
        session = await older_session(alice, two[0].url)
        with anyio.fail_after(PATIENCE_SECONDS):
            stopped_at = await started_and_broken_off(alice, two[0].url, session)
        nowhere = f"{'0' * 32}/{'0' * 32}"
        for event_id in (stopped_at, stopped_at[:-1] + "*", f"{nowhere}/0-1", f"{nowhere}/{2**64}-0", "../execution:1"):
            headers = {**session, "Last-Event-ID": event_id, "Accept": "text/event-stream"}
            for replica in two:
                answer = await bob.get(replica.url, headers=headers)
                assert answer.status_code == 404
        for key in own_redis.ask("KEYS", "mcp:*"):
            assert 0 < own_redis.ask("TTL", key) <= 3600


async def test_the_official_older_client_with_affinity(own_redis: RedisServer, tmp_path: Path) -> None:
    with (
        replicas(own_redis, tmp_path, 3, SANDBOX_OLDER_SESSIONS="sticky") as three,
        nginx(DEPLOY / "nginx" / "ip-hash.conf", three, tmp_path) as address,
    ):
        async with connected(f"{address}/mcp", "legacy") as client:
            await use_everything(client)
