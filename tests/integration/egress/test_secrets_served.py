"""Secrets as an operator configures them, for the callers of a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.integration.egress.conftest import Certificate
from tests.integration.egress.origins import Origin
from tests.integration.egress.test_clients import needs
from tests.integration.egress.test_sandbox_secrets import EVERYTHING
from tests.integration.mcp.harness import call, connected, refusal, sandbox_program, serving
from tests.unit.egress.authorities import make_authority

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FOR_ALICE, FOR_BOB, FOR_ALL = "s3cret-of-alice", "s3cret-of-bob", "s3cret-of-all"
TOKENS = {"alice": "token-of-alice", "bob": "token-of-bob"}


def private(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


def variables(folder: Path, certificate: Certificate, port: int) -> dict[str, str]:
    """What an operator sets: a file with three secrets, two ways to give their values, two callers."""
    private(folder / "bobs", FOR_BOB)
    secrets: dict[str, Any] = {
        "a": {"value_env": "TOKEN_OF_ALICE", "domains": ["origin.test"], "principals": ["alice"]},
        "b": {"value_file": "bobs", "domains": ["*.test"], "principals": ["bob"]},
        "c": {"value": FOR_ALL, "domains": ["origin.test"], "header": "X-Key", "plain_http": True},
    }
    hosts = dict.fromkeys(("origin.test", "other.test"), "127.0.0.1")
    return {
        "SANDBOX_SECRETS_FILE": str(private(folder / "secrets.json", json.dumps(secrets))),
        "SANDBOX_AUTH_TOKENS_FILE": str(private(folder / "tokens.json", json.dumps(TOKENS))),
        "SANDBOX_EGRESS_CA_CERT": "auto",
        "SANDBOX_CEILING": json.dumps({"network": {"allowed_domains": ["*.test"]}}),
        "SANDBOX_EGRESS_PORTS": str(port),
        "SANDBOX_EGRESS_PRIVATE_NETWORKS": "127.0.0.1",
        "SANDBOX_EGRESS_HOSTS": json.dumps(hosts),
        "SANDBOX_LOG_LEVEL": "DEBUG",
        "SANDBOX_LOG_FILE": str(folder / "log"),
        "SSL_CERT_FILE": str(certificate.file),
        "TOKEN_OF_ALICE": FOR_ALICE,
    }


@needs("curl")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("own_authority", [False, True])
async def test_each_caller_uses_its_own_secret_and_no_one_sees_any(
    tmp_path: Path, tls_origin: Origin, certificate: Certificate, own_authority: bool
) -> None:
    given = variables(tmp_path, certificate, tls_origin.port)
    if own_authority:
        made = make_authority("Ours", intermediate=True)
        given["SANDBOX_EGRESS_CA_CERT"] = str(private(tmp_path / "ca.pem", made.pem))
        given["SANDBOX_EGRESS_CA_KEY"] = str(private(tmp_path / "ca.key", made.key_pem))
    url = f"https://origin.test:{tls_origin.port}/"
    config = {"network": {"allowed_domains": ["origin.test"]}}
    shown = ""
    with serving(tmp_path, **given) as served:
        for caller, token in TOKENS.items():
            async with connected(served.url, token=token) as client:
                command = f"curl -sSf {url} && echo; curl -sS https://other.test:{tls_origin.port}/; {EVERYTHING}"
                said = await call(client, "execute_code", command=command, sandbox_config=config)
                assert said["stdout"].startswith("hello"), (caller, said["stderr"])
                assert [denial["rule"] for denial in said["denials"]] == ["network.allowed_domains"]
                status = await call(client, "get_execution_status", execution_id=said["execution_id"])
                assert status["isolation"]["facts"]["egress_tls"].startswith("ends in the proxy for hosts")
                refused = await refusal(
                    client, "execute_code", command="true", sandbox_config={"network": {"secrets": ["a"]}}
                )
                shown += json.dumps((said, status, refused, await call(client, "get_capabilities")))
        assert served.stop() == 0
        shown += served.log.read_text() + (tmp_path / "log").read_text()
    fields = [(seen.values("Authorization"), seen.values("X-Key")) for seen in tls_origin.seen]
    assert fields == [([f"Bearer {FOR_ALICE}"], [FOR_ALL]), ([f"Bearer {FOR_BOB}"], [FOR_ALL])]
    for value in (FOR_ALICE, FOR_BOB, FOR_ALL, "PRIVATE KEY"):
        assert value not in shown


async def test_a_server_whose_secrets_others_can_read_does_not_start(tmp_path: Path) -> None:
    path = private(tmp_path / "secrets.json", json.dumps({"one": {"value": FOR_ALL, "domains": ["origin.test"]}}))
    path.chmod(0o644)
    environment = {"SANDBOX_SECRETS_FILE": str(path), "SANDBOX_EGRESS_CA_CERT": "auto", "SANDBOX_LOG_FILE": ""}
    done = await anyio.run_process([sandbox_program(), "serve", "--port", "0"], env=environment, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 2
    assert "SANDBOX_SECRETS_FILE" in said
    assert "chmod 600" in said
    assert FOR_ALL not in said
