"""What the unit starts, with the variables of its two sources."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.deploy.written import PASSWORD, TOKEN, Engine
from tests.integration.mcp.harness import call, connected
from tests.integration.replicas.harness import DEPLOY, need

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def assignments(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


async def test_the_unit_starts_a_replica_that_stops_when_it_is_told(engine: Engine, tmp_path: Path) -> None:
    need("redis-server")
    where = ["--bind", "127.0.0.1", "--port", str(engine.redis_port), "--dir", str(tmp_path), "--save", ""]
    engine.redis(
        ["redis-server", *where, "--requirepass", PASSWORD], ["redis-cli", "ping"], {"REDISCLI_AUTH": PASSWORD}
    )
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "sandbox@.service").read_text(), re.MULTILINE))
    lines = (DEPLOY / "systemd" / "sandbox.env.example").read_text().splitlines()
    given = assignments(lines) | assignments(shlex.split(unit["Environment"].replace("%i", "8080")))
    assert given["SANDBOX_PORT"] == "8080"
    given |= {"SANDBOX_AUTH_TOKEN": TOKEN, "REDIS_URL": given["REDIS_URL"].replace("PASSWORD", PASSWORD)}
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "sandbox"
    served = engine.serve(arguments, given)
    async with connected(served.url, token=TOKEN) as client:
        said = await call(client, "execute_code", command="echo it runs")
    assert said["stdout"] == "it runs\n"
    assert unit["KillSignal"] == "SIGTERM"
    assert served.stop() == 0
