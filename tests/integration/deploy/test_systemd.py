"""What the units start, with the variables of their two sources."""

from __future__ import annotations

import re
import secrets
import shlex
import socket
from pathlib import Path

import pytest

from tests.integration.deploy.written import PASSWORD, TOKEN, Engine
from tests.integration.mcp.harness import PATIENCE_SECONDS, call, connected
from tests.integration.replicas.harness import DEPLOY, need

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SYSTEMD = DEPLOY / "systemd"


def assignments(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def unit_of(name: str) -> dict[str, str]:
    """Return the directives of a unit, `%i` filled in."""
    text = (SYSTEMD / name).read_text().replace("%i", "8080")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def given(unit: dict[str, str]) -> dict[str, str]:
    """Return the variables of a unit, and of the example of its file over them, the password of Redis filled in."""
    example = SYSTEMD / f"{Path(unit['EnvironmentFile']).name}.example"
    lines = [line for line in example.read_text().splitlines() if not line.startswith("#")]
    told = assignments(shlex.split(unit["Environment"])) | assignments(lines)
    return {name: value.replace("PASSWORD", PASSWORD) for name, value in told.items()}


@pytest.fixture
def redis(engine: Engine, tmp_path: Path) -> None:
    """One with the password of the examples."""
    need("redis-server")
    where = ["--bind", "127.0.0.1", "--port", str(engine.redis_port), "--dir", str(tmp_path), "--save", ""]
    engine.redis(
        ["redis-server", *where, "--requirepass", PASSWORD], ["redis-cli", "ping"], {"REDISCLI_AUTH": PASSWORD}
    )


async def test_the_unit_starts_a_replica_that_stops_when_it_is_told(engine: Engine, redis: None) -> None:
    unit = unit_of("sandbox@.service")
    variables = given(unit) | {"SANDBOX_AUTH_TOKEN": TOKEN}
    assert variables["SANDBOX_PORT"] == "8080"
    program, *arguments = shlex.split(unit["ExecStart"])
    assert Path(program).name == "sandbox"
    served = engine.serve(arguments, variables)
    async with connected(served.url, token=TOKEN) as client:
        said = await call(client, "execute_code", command="echo it runs")
    assert said["stdout"] == "it runs\n"
    assert unit["KillSignal"] == "SIGTERM"
    assert served.stop() == 0


@pytest.mark.parametrize(
    ("name", "port_name"), [("sandbox@.service", "SANDBOX_PORT"), ("sandbox-worker@.service", "SANDBOX_WORKER_PORT")]
)
def test_systemd_is_told_when_it_is_ready_and_when_it_drains(
    engine: Engine, redis: None, name: str, port_name: str
) -> None:
    unit = unit_of(name)
    assert unit["Type"] == "notify"
    address = f"sandbox-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address}")
        manager.settimeout(PATIENCE_SECONDS)
        variables = given(unit) | {"SANDBOX_AUTH_TOKEN": TOKEN, "NOTIFY_SOCKET": f"@{address}"}
        served = engine.serve(shlex.split(unit["ExecStart"])[1:], variables, port_name)
        assert manager.recv(100) == b"READY=1"
        assert served.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


async def test_the_worker_s_unit_starts_a_worker_for_servers_that_run_nothing(engine: Engine, redis: None) -> None:
    unit, front = unit_of("sandbox-worker@.service"), unit_of("sandbox@.service")
    variables = given(unit)
    assert variables["SANDBOX_WORKER_PORT"] == "8080"
    assert "SANDBOX_AUTH_TOKEN" not in variables
    queue = {"SANDBOX_QUEUE_URL": variables["SANDBOX_QUEUE_URL"], "SANDBOX_LOCAL_RUNNER": "false"}
    served = engine.serve(shlex.split(front["ExecStart"])[1:], given(front) | queue | {"SANDBOX_AUTH_TOKEN": TOKEN})
    working = engine.serve(shlex.split(unit["ExecStart"])[1:], variables, "SANDBOX_WORKER_PORT")
    async with connected(served.url, token=TOKEN) as client:
        said = await call(client, "execute_code", command="echo it runs")
    assert said["stdout"] == "it runs\n"
    assert working.stop() == 0


@pytest.mark.parametrize(
    ("name", "bad", "variable"),
    [
        ("sandbox@.service", {}, "SANDBOX_AUTH_TOKEN"),  # the example's is empty
        ("sandbox@.service", {"SANDBOX_AUTH_TOKEN": TOKEN, "SANDBOX_TTL_SECONDS": "long"}, "SANDBOX_TTL_SECONDS"),
        ("sandbox-worker@.service", {"SANDBOX_LOCAL_RUNNER": "false"}, "SANDBOX_LOCAL_RUNNER"),
    ],
)
def test_what_cannot_be_used_is_named_and_ends_with_the_code_after_which_no_unit_starts_again(
    engine: Engine, name: str, bad: dict[str, str], variable: str
) -> None:
    unit = unit_of(name)
    ended = engine.run(["sandbox", *shlex.split(unit["ExecStart"])[1:]], given(unit) | bad)
    assert str(ended.returncode) == unit["RestartPreventExitStatus"]
    assert variable in ended.stderr
    assert PASSWORD not in ended.stderr


@pytest.mark.parametrize(
    ("name", "port_name"), [("sandbox@.service", "SANDBOX_PORT"), ("sandbox-worker@.service", "SANDBOX_WORKER_PORT")]
)
def test_a_port_that_is_taken_is_tried_again(engine: Engine, name: str, port_name: str) -> None:
    unit = unit_of(name)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"SANDBOX_AUTH_TOKEN": TOKEN, port_name: str(other.getsockname()[1])}
        ended = engine.run(["sandbox", *shlex.split(unit["ExecStart"])[1:]], given(unit) | taken)
    assert "in use" in ended.stderr
    assert ended.returncode not in (0, int(unit["RestartPreventExitStatus"]))
