"""Network grants as an operator makes them, and as callers of a server ask for them."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from sandbox_adapters.sandbox import open_sandbox
from sandbox_adapters.settings import Settings
from sandbox_core.domain.errors import PolicyRefused
from sandbox_core.domain.outcome import TerminationReason
from tests.integration.egress.origins import Origin
from tests.integration.mcp.harness import call, connected, refusal, serving

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CEILING = {"network": {"allowed_domains": ["*.test"], "denied_domains": ["secret.test"]}}
HOSTS = dict.fromkeys(("origin.test", "other.test", "secret.test"), "127.0.0.1")


def asking(*names: str) -> dict[str, Any]:
    return {"network": {"allowed_domains": list(names)}}


async def test_the_library_runs_what_the_ceiling_permits(origin: Origin) -> None:
    settings = Settings(
        ceiling=CEILING,
        egress_ports=(origin.port,),
        egress_private_networks=(ip_network("127.0.0.1"),),
        egress_hosts={name: (ip_address(address),) for name, address in HOSTS.items()},
    )
    script = "for name in origin secret inside; do curl -sS http://$name.test:$0/ | head -1; done"
    command = ["sh", "-c", script, str(origin.port)]
    async with open_sandbox(settings) as sandbox:
        result = await sandbox.run(command, policy=asking("origin.test", "secret.test"))
        assert result.stdout.startswith(b"hello")
        assert [(denial.target, denial.rule) for denial in result.denials] == [
            (f"secret.test:{origin.port}", "network.denied_domains"),
            (f"inside.test:{origin.port}", "network.allowed_domains"),
        ]
        assert result.usage.network_received_bytes
        assert (await sandbox.run(command)).usage.network_received_bytes is None
        with pytest.raises(PolicyRefused, match=r"network\.allowed_domains: asked example\.com, allowed \*\.test"):
            await sandbox.run("true", policy=asking("example.com"))
        stopped = await sandbox.run("sleep 100", timeout_seconds=0.5, policy=asking("origin.test"))
        assert stopped.termination_reason is TerminationReason.WALL_TIME
    assert len(origin.seen) == 1


async def test_private_addresses_stay_out_of_reach_unless_the_operator_says_so(origin: Origin) -> None:
    settings = Settings(
        ceiling=CEILING, egress_ports=(origin.port,), egress_hosts={"origin.test": (ip_address("127.0.0.1"),)}
    )
    async with open_sandbox(settings) as sandbox:
        result = await sandbox.run(f"curl -sS http://origin.test:{origin.port}/", policy=asking("origin.test"))
    assert [denial.rule for denial in result.denials] == ["network.addresses"]
    assert not origin.seen


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_mcp_server_grants_and_reports_the_network(tmp_path: Path, origin: Origin) -> None:
    variables = {
        "SANDBOX_CEILING": json.dumps(CEILING),
        "SANDBOX_EGRESS_PORTS": str(origin.port),
        "SANDBOX_EGRESS_PRIVATE_NETWORKS": "127.0.0.1",
        "SANDBOX_EGRESS_HOSTS": json.dumps(HOSTS),
    }
    command = f"curl -sS http://origin.test:{origin.port}/; curl -sS -o /dev/null http://other.test:{origin.port}/"
    with serving(tmp_path, **variables) as served:
        async with connected(served.url) as client:
            said = await call(client, "execute_code", command=command, sandbox_config=asking("origin.test"))
            assert said["stdout"] == "hello"
            [denial] = said["denials"]
            assert (denial["kind"], denial["target"], denial["rule"]) == (
                "network",
                f"other.test:{origin.port}",
                "network.allowed_domains",
            )
            status = await call(client, "get_execution_status", execution_id=said["execution_id"])
            assert status["isolation"]["network"] == "egress"
            assert status["usage"]["network_received_bytes"] > 0
            error = await refusal(client, "execute_code", command="true", sandbox_config=asking("example.com"))
            assert error["code"] == "policy_refused"
            error = await refusal(client, "execute_code", command="true", sandbox_config=asking("a_*.test"))
            assert "network.allowed_domains" in error["message"]
            for name in ("ports", "egress_hosts", "private_networks"):
                grant = {"network": {"allowed_domains": ["origin.test"], name: ["127.0.0.0/8"]}}
                error = await refusal(client, "execute_code", command="true", sandbox_config=grant)
                assert f"network.{name}" in error["message"]
    assert len(origin.seen) == 1
