"""Sandboxes whose names under `.test` lead to servers on this machine's loopback."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network

import anyio

from sandbox_adapters.egress import AddressPolicy, OperatorSecrets, is_own_address
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.network import Egress
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.testing.runner_harness import Finished, finish, launch_of
from tests.integration.egress.conftest import Certificate, lookup

ADDRESSES = AddressPolicy(also_reachable=(ip_network("127.0.0.1/32"),), is_own=is_own_address)
CA_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
PROGRAMS_SECONDS = 90
"""Some run a package manager twice, which takes its time on a busy machine."""
LIMITS = ResourceLimits(workspace_mb=128, max_processes=128)


@asynccontextmanager
async def runner_for(
    *ports: int, executions: int = 10, secrets: OperatorSecrets | None = None
) -> AsyncIterator[BubblewrapRunner]:
    """Yield a runner whose sandboxes may ask for these ports."""
    egress = Egress(
        ports=frozenset(ports), addresses=ADDRESSES, lookup=lambda: lookup, executions=executions, secrets=secrets
    )
    async with BubblewrapRunner(spares=1, egress=egress) as runner:
        assert egress.unavailable == ""
        yield runner


def reaching(*names: str, denied: Sequence[str] = ()) -> ExecutionPolicy:
    """Return a policy that grants these names."""
    return ExecutionPolicy(
        network=NetworkPolicy(allowed_domains=names, denied_domains=tuple(denied)), resource_limits=LIMITS
    )


async def run_in(
    runner: BubblewrapRunner,
    script: str,
    policy: ExecutionPolicy,
    *,
    certificate: Certificate | None = None,
) -> Finished:
    """Run shell text to its end; with a certificate, every client in there trusts it."""
    environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "NPM_CONFIG_UPDATE_NOTIFIER": "false"}
    if certificate is not None:
        environment |= dict.fromkeys(CA_VARIABLES, "/workspace/ca.pem")
        script = f"printf %s {shlex.quote(certificate.file.read_text())} > ca.pem\n{script}"
    with anyio.fail_after(PROGRAMS_SECONDS):
        async with runner.start(launch_of(Command(shell=script, environment=environment), policy)) as process:
            await process.close_stdin()
            return await finish(process)


def denied(finished: Finished) -> list[tuple[str, str]]:
    """Return the target and the rule of each denial."""
    return [(denial.target, denial.rule) for denial in finished.exit.denials]
