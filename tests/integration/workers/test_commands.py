"""The commands under the variables of a fleet, and what they refuse."""

from __future__ import annotations

import json
import subprocess  # noqa: TID251  # the program under test
from pathlib import Path

import pytest

from tests.integration.mcp.harness import call, connected, environment, sandbox_program
from tests.integration.workers.harness import fleet
from tests.redis_server import RedisServer

pytestmark = pytest.mark.integration

AWAY = "redis://:secret@127.0.0.1:1"
FLEET = {"REDIS_URL": AWAY, "SANDBOX_QUEUE_URL": AWAY, "SANDBOX_LOCAL_RUNNER": "false"}


def sandbox(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sandbox_program(), *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "variables", "said"),
    [
        ("worker", {"REDIS_URL": AWAY}, "SANDBOX_QUEUE_URL is not set"),
        ("workers", {}, "REDIS_URL is not set: workers are known where"),
        ("workers", {"REDIS_URL": "redis://:secret@localhost/none"}, "REDIS_URL is not a Redis URL"),
        ("worker", {"SANDBOX_QUEUE_URL": "amqp://u:secret@localhost/"}, "set REDIS_URL too"),
        ("worker", {"SANDBOX_QUEUE_URL": "nats://u:secret@localhost"}, "set REDIS_URL too"),
        ("worker", {"REDIS_URL": AWAY, "SANDBOX_QUEUE_URL": "amqp://u:secret@@localhost"}, "is not a RabbitMQ URL"),
        ("worker", {"REDIS_URL": AWAY, "SANDBOX_QUEUE_URL": "nats://u:secret/@localhost"}, "is not a NATS URL"),
        ("worker", {"REDIS_URL": AWAY, "SANDBOX_QUEUE_URL": "redis://:secret@localhost/a"}, "URL is not a Redis URL"),
        ("worker", {"SANDBOX_LABELS": "GPU"}, "SANDBOX_LABELS: each must be 1 to 63 characters"),
        ("worker", FLEET, "SANDBOX_LOCAL_RUNNER is false: a worker runs what it takes"),
        ("serve", {"SANDBOX_QUEUE_URL": AWAY}, "the state is in memory"),
        ("serve", {"REDIS_URL": AWAY, "SANDBOX_LOCAL_RUNNER": "false"}, "without SANDBOX_QUEUE_URL no worker"),
        ("serve", {"REDIS_URL": AWAY, "SANDBOX_QUEUE_URL": "kafka://:secret@localhost"}, "must begin with one of"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(command: str, variables: dict[str, str], said: str) -> None:
    done = sandbox(command, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_workers_says_when_redis_is_away_and_tells_no_password() -> None:
    done = sandbox("workers", REDIS_URL=AWAY)
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_worker_is_no_error(redis_server: RedisServer) -> None:
    done = sandbox("workers", REDIS_URL=redis_server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No worker was heard of" in done.stdout
    assert json.loads(sandbox("workers", "--json", REDIS_URL=redis_server.url).stdout) == {"workers": []}


def test_a_command_that_needs_a_label_runs_here_where_it_is_offered() -> None:
    wants = ("run", "--label", "gpu", "--", "echo", "here")
    done = sandbox(*wants, SANDBOX_LABELS="gpu,large")
    assert (done.returncode, done.stdout) == (0, "here\n")
    refused = sandbox(*wants)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no worker offers gpu" in refused.stderr


def test_a_command_is_run_here_whatever_a_server_would_do() -> None:
    done = sandbox("run", "--", "echo", "here", **FLEET)
    assert (done.returncode, done.stdout) == (0, "here\n")


def test_doctor_asks_no_isolation_of_a_server_that_runs_nothing(tmp_path: Path) -> None:
    done = sandbox("doctor", "--json", **FLEET, SANDBOX_BWRAP_PATH=str(tmp_path / "none"))
    found = json.loads(done.stdout)
    assert (done.returncode, found["works"]) == (0, True)
    assert found["capabilities"]["runner"] == "remote"


@pytest.mark.anyio
async def test_a_server_that_runs_nothing_starts_without_bubblewrap(own_redis: RedisServer, tmp_path: Path) -> None:
    with fleet(own_redis, tmp_path, servers=0, workers=1) as mine:
        server = mine.add_server(SANDBOX_BWRAP_PATH=str(tmp_path / "none"))
        server.wait_ready()
        async with connected(server.url) as client:
            assert (await call(client, "execute_code", command="echo on"))["stdout"] == "on\n"
