"""Every command and configuration of docs/deployment.md does what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess  # noqa: TID251  # the snippets are commands
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.integration.docs.markdown import ROOT, block, blocks
from tests.ports import free_port
from tests.redis_server import RedisServer

pytestmark = pytest.mark.integration

DOCUMENT = "docs/deployment.md"
FILES = {"file: deploy/nginx/round-robin.conf", "file: deploy/systemd/install.sh"}
SECONDS = 60
COMMANDS = {"single", "redis", "redis tuned", "instance 1", "instance 2", "instance 3", "front", "worker"}
STEPS = {"start through 1", "read through 2", "look", "logs", "run there"}


class Walk:
    """The commands of the document on free ports, with a Redis of their own."""

    def __init__(self, directory: Path, redis_port: int, environment: Mapping[str, str]) -> None:
        self.ports = {port: free_port() for port in (8080, 8081, 8082, 8090)} | {6379: redis_port}
        self.environment = {**environment, "REDISCLI_HISTFILE": "/dev/null"}
        self._directory = directory
        self._stack = ExitStack()

    def command(self, marker: str) -> str:
        text = block(DOCUMENT, f"test: {marker}")
        text = text.replace("redis-cli ", "redis-cli -p 6379 ").replace("redis-server", "redis-server --port 6379")
        return re.sub(r"\b(8080|8081|8082|8090|6379)\b", lambda found: str(self.ports[int(found[0])]), text)

    def start(self, marker: str) -> None:
        """Start a server as the document says."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {self.command(marker)}"],
            cwd=self._directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait, SECONDS)
        self._stack.callback(process.terminate)

    def run(self, marker: str, **values: str) -> str:
        """Run the commands of a step and return what they print."""
        text = self.command(marker)
        for name, value in values.items():
            text = text.replace(name, value)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self, port: int) -> None:
        """Wait until the server on this port of the document is healthy."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{self.ports[port]}/health", timeout=SECONDS).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            assert time.monotonic() < deadline, f"nothing healthy on port {port}"
            time.sleep(0.05)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def walk(tmp_path: Path, redis_server: RedisServer, environment: dict[str, str]) -> Iterator[Walk]:
    own = {name: value for name, value in environment.items() if name != "REDIS_URL"}
    own["SANDBOX_LOG_FILE"] = str(tmp_path / "sandbox_server.log")
    walked = Walk(tmp_path, redis_server.port, own)
    yield walked
    walked.close()


def test_every_snippet_is_marked_and_so_tested() -> None:
    marked = {item.marker for item in blocks(DOCUMENT) if item.language not in ("", "mermaid")}  # but diagrams
    assert marked == {f"test: {name}" for name in COMMANDS | STEPS} | FILES


@pytest.mark.parametrize("shown", sorted(FILES))
def test_what_is_shown_is_the_file_that_is_tested(shown: str) -> None:
    assert block(DOCUMENT, shown) == (ROOT / shown.removeprefix("file: ")).read_text(encoding="utf-8")


def test_every_link_and_path_leads_somewhere() -> None:
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`(deploy/[^`]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_walk_through(walk: Walk) -> None:
    for number in (1, 2, 3):
        walk.start(f"instance {number}")
    for port in (8080, 8081, 8082):
        walk.healthy(port)
    started = walk.run("start through 1")
    found = re.search(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", started)
    assert found is not None, started
    said = walk.run("read through 2", EXECUTION_ID=found[0])
    assert "line 1\\nline 2\\nline 3\\n" in said
    looked = walk.run("look", EXECUTION_ID=found[0]).splitlines()
    assert looked[0] == "PONG"
    assert {f"execution:{found[0]}", f"execution:{found[0]}:output"} <= set(looked)
    documents = [json.loads(line) for line in looked if line.startswith("{")]
    assert documents[0]["execution"]["status"] == "completed"
    assert "".join(event["data"] for event in documents if event.get("type") == "stdout") == "line 1\nline 2\nline 3\n"
    assert looked[-2] == found[0]
    assert 0 < int(looked[-1]) <= 3600
    assert "Redis connected - distributed mode enabled" in walk.run("logs")


def test_one_server_needs_no_redis(walk: Walk) -> None:
    walk.start("single")
    walk.healthy(8080)
    health = httpx2.get(f"http://127.0.0.1:{walk.ports[8080]}/health", timeout=SECONDS).json()
    assert health["store"] == "memory"


@pytest.mark.parametrize("marker", ["redis", "redis tuned"])
def test_redis_starts_as_said(walk: Walk, marker: str) -> None:
    walk.ports[6379] = free_port()
    walk.start(marker)
    deadline = time.monotonic() + SECONDS
    ping = shlex.split(f"redis-cli -p {walk.ports[6379]} ping")
    while subprocess.run(ping, capture_output=True, text=True, check=False).stdout.strip() != "PONG":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_runs_nothing_and_a_worker(walk: Walk) -> None:
    for marker in ("front", "worker"):
        walk.start(marker)
    for port in (8080, 8090):
        walk.healthy(port)
    walk.ports[8081] = walk.ports[8080]  # the walk-through reads at another replica; here there is one server
    started = walk.run("start through 1")
    found = re.search(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", started)
    assert found is not None, started
    assert "line 1\\nline 2\\nline 3\\n" in walk.run("read through 2", EXECUTION_ID=found[0])
    assert walk.run("run there") == "from a worker\n"
    told = httpx2.get(f"http://127.0.0.1:{walk.ports[8080]}/health", timeout=SECONDS).json()
    assert (told["runner"], told["capacity"]) == ("remote", 0)
