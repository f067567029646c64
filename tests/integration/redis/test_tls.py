"""Redis over TLS: reached with the authority named, refused without it, and used by a whole sandbox."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from pydantic import SecretStr

from sandbox_adapters import Settings, open_sandbox
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_core.domain.errors import StoreUnavailable
from sandbox_core.testing import Script, ScriptedRunner
from tests.certificates import self_signed
from tests.integration.redis.conftest import ANSWER_SECONDS
from tests.ports import free_port
from tests.redis_server import running_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself; its key is beside it."""
    return self_signed(tmp_path, "redis")


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    """The port of a Redis that asks for a password and speaks TLS there."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing; apt-get install redis-server")
    port = free_port()
    with running_redis(
        *("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-auth-clients", "no"),
        *("--tls-key-file", str(certificate.with_name("redis.key")), "--tls-ca-cert-file", str(certificate)),
        *("--user", "app", "on", ">s3cret", "~*", "&*", "+@all"),
    ):
        yield port


async def test_a_whole_sandbox_keeps_its_state_behind_tls(certificate: Path, tls_port: int) -> None:
    url = f"rediss://app:s3cret@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"
    async with open_sandbox(
        Settings(redis_url=SecretStr(url), redis_timeout_seconds=ANSWER_SECONDS),
        runner=ScriptedRunner({"true": Script()}),
    ) as sandbox:
        result = await sandbox.run("true")
        assert (result.status, result.exit_code) == ("completed", 0)
        with anyio.fail_after(60):
            while (await sandbox.health()).status != "ok":
                await anyio.lowlevel.checkpoint()
        assert [entry.id for entry in (await sandbox.list()).executions] == [result.execution_id]


async def test_a_server_that_nobody_vouches_for_is_refused(tls_port: int) -> None:
    options = RedisOptions(url=SecretStr(f"rediss://app:s3cret@127.0.0.1:{tls_port}/0"), timeout_seconds=2)
    async with RedisConnection(options) as redis:
        with pytest.raises(StoreUnavailable) as refused:
            await redis.command("PING")
    assert "cannot be reached (its certificate is not accepted: " in str(refused.value)
    assert "s3cret" not in str(refused.value)


async def test_without_tls_it_is_not_spoken_to(tls_port: int) -> None:
    options = RedisOptions(url=SecretStr(f"redis://app:s3cret@127.0.0.1:{tls_port}/0"), timeout_seconds=2)
    async with RedisConnection(options) as redis:
        with pytest.raises(StoreUnavailable):
            await redis.command("PING")
