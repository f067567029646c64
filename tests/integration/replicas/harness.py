"""Several real replicas of `sandbox serve` on loopback, one real Redis, and a real nginx or Caddy in front."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess  # noqa: TID251  # the servers under test are programs
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import Client

from sandbox_core.testing.history import log_faults
from tests.integration.mcp.harness import (
    NO_TLS,
    PATIENCE_SECONDS,
    Served,
    call,
    eventually,
)
from tests.integration.program import Program, close_all
from tests.ports import free_port
from tests.redis_server import RedisServer

DEPLOY = Path(__file__).parents[3] / "deploy"
LEASE_SECONDS = 9.0
"""The default: a busy machine must not be taken for a dead replica."""
SHORT_LEASE = {"SANDBOX_LEASE_SECONDS": "4.5"}
"""Where a test waits for what a dead one had, and has nothing else to lose."""
LOST_WITHIN_SECONDS = 15.0
"""What is promised with the default lease."""

TOKENS = {"alice": "a" * 40, "bob": "b" * 40}

Replica = Program
"""One replica that can be stopped and started again on its port."""


@contextmanager
def replicas(redis: RedisServer, directory: Path, count: int = 3, **variables: str) -> Iterator[list[Replica]]:
    """Start replicas on free ports that share `redis`."""
    given = {"REDIS_URL": redis.url, "SANDBOX_LEASE_SECONDS": str(LEASE_SECONDS), **variables}
    started: list[Replica] = []
    try:
        for _ in range(count):
            started.append(Replica(directory, ["serve"], given))
        for replica in started:
            replica.wait_ready()
        yield started
    finally:
        close_all(started)


def two_with_tokens(redis: RedisServer, directory: Path, **variables: str) -> AbstractContextManager[list[Replica]]:
    """Start two replicas that know the callers of TOKENS and have sessions for older clients."""
    tokens = directory / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    return replicas(
        redis, directory, 2, SANDBOX_OLDER_SESSIONS="sticky", SANDBOX_AUTH_TOKENS_FILE=str(tokens), **variables
    )


@contextmanager
def nginx(configuration: Path, servers: Sequence[Served], directory: Path) -> Iterator[str]:
    """Run a real nginx with a file of deploy/ in front of these servers; yields the address that it serves."""
    need("nginx")
    port = free_port()
    (directory / "sandbox.conf").write_text(_with_ports(configuration, servers, port))
    main = directory / "nginx.conf"
    as_root = "user root;" if os.geteuid() == 0 else ""
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {directory}/{name};" for name in paths)
    main.write_text(
        f"{as_root} daemon off; worker_processes 2; pid {directory}/nginx.pid; error_log stderr warn;"
        f" events {{}} http {{ access_log off; {temporary} include {directory}/sandbox.conf; }}"
    )
    log = directory / "nginx.log"
    with _running(["nginx", "-e", "stderr", "-p", str(directory), "-c", str(main)], port, log):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def caddy(servers: Sequence[Served], directory: Path) -> Iterator[str]:
    """Run a real Caddy with deploy/caddy/Caddyfile in front of these servers, without TLS."""
    need("caddy")
    port = free_port()
    text = (DEPLOY / "caddy" / "Caddyfile").read_text()
    for number, served in enumerate(servers):
        text = text.replace(f"localhost:{8080 + number}", f"127.0.0.1:{served.port}")
    text = text.replace("sandbox.example.com {", f"http://127.0.0.1:{port} {{")
    file = directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    log = directory / "caddy.log"
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with _running(["caddy", "run", "--config", str(file), "--adapter", "caddyfile"], port, log, **home):
        yield f"http://127.0.0.1:{port}"


def need(program: str) -> None:
    """Skip where a program is missing; in CI that is a failure."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing; apt-get install {program}")


async def whole_log(client: Client, execution_id: str) -> list[dict[str, object]]:
    """Return every event of an execution, read page by page."""
    events: list[dict[str, object]] = []
    after = "0"
    while True:
        page = await call(
            client, "get_execution_output", execution_id=execution_id, last_event_id=after, max_bytes=65_536
        )
        events.extend(page["output"])
        after = page["last_event_id"]
        if not page["has_more"]:
            return events


def check_log(events: Sequence[dict[str, object]], *, ended: bool = True) -> None:
    """Fail unless the log is numbered 1, 2, 3 … and its one terminal event, if it has ended, is the last."""
    faults = log_faults([(int(str(event["event_id"])), str(event["type"])) for event in events], ended=ended)
    assert not faults, faults


def printed(events: Sequence[dict[str, object]]) -> str:
    """Return what the events say was printed on standard output."""
    return "".join(str(event["data"]) for event in events if event["type"] == "stdout")


def _with_ports(configuration: Path, servers: Sequence[Served], port: int) -> str:
    text = configuration.read_text()
    for number, served in enumerate(servers):
        for name in (f"localhost:{8080 + number}", f"replica{number + 1}:8080"):
            text = text.replace(f"server {name} ", f"server 127.0.0.1:{served.port} ")
    text = re.sub(r"server localhost:80\d\d [^;]*;", "", text)
    return re.sub(r"listen 80;", f"listen 127.0.0.1:{port};", text)


@contextmanager
def _running(command: Sequence[str], port: int, log: Path, **variables: str) -> Iterator[None]:
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **variables}
        )
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5, verify=NO_TLS).status_code == 200
                except httpx2.HTTPError:
                    return False

            eventually(answers, f"{command[0]} serves; its log: {log.read_text()}")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
