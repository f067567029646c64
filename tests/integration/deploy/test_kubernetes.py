"""The pods' containers, started on loopback with the arguments, variables, secrets and probes of their manifests."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.deploy.written import METRICS_TOKEN, TOKEN, Container, Engine, containers
from tests.integration.mcp.harness import NO_TLS, PATIENCE_SECONDS, Served, call, connected
from tests.integration.replicas.harness import need

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture
def redis(engine: Engine, tmp_path: Path) -> None:
    """The one of redis.yaml."""
    need("redis-server")
    held = containers("redis.yaml")["sandbox-redis"]
    shell, option, script = held.raw["command"]
    assert script.count("dir /data\n") == 1
    script = script.replace("dir /data\n", f"dir {tmp_path}\nbind 127.0.0.1\nport {engine.redis_port}\n")
    engine.redis([shell, option, script], held.raw["readinessProbe"]["exec"]["command"], held.variables)


def probes_pass(held: Container, served: Served) -> None:
    """Ask as the kubelet would."""
    names: dict[str, Any] = {port["name"]: port["containerPort"] for port in held.raw["ports"]}
    told = {held.variables.get("SANDBOX_PORT"), held.variables.get("SANDBOX_WORKER_PORT")}
    ready = held.raw["readinessProbe"]["httpGet"]
    assert str(names[ready["port"]]) in told
    answer = httpx2.get(f"http://127.0.0.1:{served.port}{ready['path']}", timeout=PATIENCE_SECONDS, verify=NO_TLS)
    assert answer.status_code == 200
    for probe in ("livenessProbe", "startupProbe"):
        assert str(names[held.raw[probe]["tcpSocket"]["port"]]) in told
    socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_SECONDS).close()


async def test_a_replica(engine: Engine, redis: None) -> None:
    held = containers("sandbox.yaml")["sandbox"]
    served = engine.serve(held.raw["args"], held.variables)
    probes_pass(held, served)
    async with connected(served.url, token=TOKEN) as client:
        said = await call(client, "execute_code", command="echo it runs")
    assert said["stdout"] == "it runs\n"


async def test_a_server_that_runs_nothing_and_a_worker(engine: Engine, redis: None) -> None:
    held = containers("workers.yaml")
    api, worker = held["sandbox-api"], held["sandbox-worker"]
    served = engine.serve(api.raw["args"], api.variables)
    working = engine.serve(worker.raw["args"], worker.variables, "SANDBOX_WORKER_PORT")
    probes_pass(api, served)
    probes_pass(worker, working)
    async with connected(served.url, token=TOKEN) as client:
        said = await call(client, "execute_code", command="echo it runs")
    assert said["stdout"] == "it runs\n"
    scraped = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    for each in (served, working):
        address = f"http://127.0.0.1:{each.port}/metrics"
        assert httpx2.get(address, timeout=PATIENCE_SECONDS, verify=NO_TLS).status_code == 401
        assert "sandbox_" in httpx2.get(address, headers=scraped, timeout=PATIENCE_SECONDS, verify=NO_TLS).text
