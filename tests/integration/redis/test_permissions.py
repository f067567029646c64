"""A user of Redis with the permissions that are documented, and with fewer."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from sandbox_adapters import Settings, open_sandbox
from sandbox_adapters.doctor import redis_check
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.testing import EchoInput, Print, Script, ScriptedRunner
from tests.integration.redis.conftest import ANSWER_SECONDS, PATIENT
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

BOUND_SECONDS = 60
PASSWORD = "tidal-marsh-41"
DEPLOYMENT = Path(__file__).parents[3] / "docs" / "deployment.md"
COMMANDS = "+@all -@dangerous"


def url_of(server: RedisServer, *rules: str) -> str:
    """Return the URL of a user that has only these permissions."""
    server.ask("ACL", "SETUSER", "sandbox", "reset", "on", f">{PASSWORD}", *rules)
    return f"redis://sandbox:{PASSWORD}@127.0.0.1:{server.port}/0"


@pytest.mark.parametrize(("keys", "prefix"), [("~* &*", ""), ("~x:* &x:*", "x")])
async def test_with_those_that_are_documented_everything_is_done_and_nothing_was_refused(
    own_redis: RedisServer, keys: str, prefix: str
) -> None:
    text = DEPLOYMENT.read_text()
    assert f"`~* &* {COMMANDS}`" in text
    assert f"`{keys}`" in text or not prefix
    url = url_of(own_redis, *keys.split(), *COMMANDS.split())
    own_redis.ask("ACL", "LOG", "RESET")
    given = {"redis_url": url, "queue_url": url, "redis_prefix": prefix, "labels": ["gpu"], **PATIENT}
    runner = ScriptedRunner({"chat": Script(steps=[Print(b"ready\n"), EchoInput()])})
    with anyio.fail_after(BOUND_SECONDS):
        async with open_sandbox(Settings.model_validate(given), runner=runner) as sandbox:
            told, ended = [await sandbox.submit("chat", interactive=True, labels=["gpu"]) for _ in range(2)]
            await sandbox.send_stdin(told, "go\n", end=True)
            assert (await sandbox.wait(told)).stdout == b"ready\ngo\n"
            await sandbox.cancel(ended)
            assert (await sandbox.wait(ended)).status == "cancelled"
            assert (await sandbox.health()).status == "ok"
        assert own_redis.ask("ACL", "LOG") == []
        assert (await redis_check(Settings.model_validate(given))).ok


async def test_without_channels_it_is_said_before_somebody_waits_in_vain(own_redis: RedisServer) -> None:
    options = RedisOptions(url=SecretStr(url_of(own_redis, "~*", "+@all")), timeout_seconds=ANSWER_SECONDS)
    async with RedisConnection(options) as redis:
        with anyio.fail_after(BOUND_SECONDS), pytest.raises(StoreUnavailable, match=r"does not permit its user .*&\*"):
            await RedisStateStore(redis).ping()
    found = await redis_check(Settings.model_validate({"redis_url": options.url.get_secret_value(), **PATIENT}))
    assert not found.ok
    assert "does not permit its user" in found.detail
    assert PASSWORD not in repr(found)
