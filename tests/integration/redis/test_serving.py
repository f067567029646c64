"""`sandbox serve` on Redis: two servers that share it, what they log, and what the doctor says of it."""

from __future__ import annotations

import json
import os
import subprocess  # noqa: TID251  # runs the program under test
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
from mcp import Client

from examples.serving import SANDBOX, Server, serve
from sandbox_adapters.doctor import redis_check
from sandbox_adapters.settings import Settings
from tests.redis_server import RedisServer, running_redis

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


async def told(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return dict(result.structured_content or {})


async def health(server: Server) -> dict[str, Any]:
    async with httpx2.AsyncClient(headers=server.headers, timeout=60) as http:
        return dict((await http.get(f"{server.url}/health")).json())


async def is_soon(server: Server, status: str) -> None:
    """Wait for this in /health: a busy machine may make it miss an answer."""
    with anyio.fail_after(60):
        while (await health(server))["status"] != status:
            await anyio.lowlevel.checkpoint()


async def test_a_second_server_answers_for_what_the_first_started() -> None:
    with running_redis("--user", "app", "on", ">s3cret", "~*", "&*", "+@all") as redis:
        given = {"REDIS_URL": f"redis://app:s3cret@127.0.0.1:{redis.port}/0"}
        async with serve(environment=given) as one, serve(environment=given) as two:
            async with one.client() as first, two.client() as second:
                started = await told(first, "execute_code_async", command="echo begun; sleep 60", session_id="s")
                execution_id = started["execution_id"]
                page = await told(second, "get_execution_output", execution_id=execution_id, wait_seconds=60)
                assert page["stdout"] in ("", "begun\n")
                await told(second, "cancel_execution", execution_id=execution_id)
                ended = await told(first, "get_execution_output", execution_id=execution_id, wait=True, wait_seconds=60)
                assert ended["status"] == "cancelled"
            assert (await health(one))["store"] == "redis"
            await is_soon(two, "ok")
            for server in (one, two):
                log = server.log.read_text()
                assert "Redis connected - distributed mode enabled" in log
                assert "s3cret" not in log
            redis.stop()
            await is_soon(one, "unavailable")


def test_a_wrong_password_ends_the_server_without_showing_it() -> None:
    with running_redis("--user", "app", "on", ">s3cret", "~*", "&*", "+@all") as redis:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        environment |= {"REDIS_URL": f"redis://app:s3cretx@127.0.0.1:{redis.port}/0", "SANDBOX_LOG_FILE": ""}
        done = subprocess.run(
            [SANDBOX, "serve", "--port", "0"], env=environment, capture_output=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert b"refuses the user or the password" in done.stderr
    assert b"s3cret" not in done.stdout + done.stderr


async def test_the_doctor_names_a_policy_that_loses_data(own_redis: RedisServer) -> None:
    settings = Settings.model_validate({"redis_url": own_redis.url})
    good = await redis_check(settings)
    assert good.ok
    assert f"127.0.0.1:{own_redis.port}" in good.detail
    own_redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    bad = await redis_check(settings)
    assert not bad.ok
    assert "noeviction" in str(bad.fix)
    own_redis.stop()
    gone = await redis_check(settings)
    assert not gone.ok
    assert json.dumps(gone.detail)
