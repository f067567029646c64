"""The operator's secrets in real sandboxes: they arrive where they should, and nothing inside ever shows them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.egress import OperatorSecrets, Secret
from sandbox_adapters.egress.authority import CertificateAuthority
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.domain.ids import ExecutionId, Principal
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.runner import Launch
from sandbox_core.testing.runner_harness import Finished, finish
from tests.integration.egress.conftest import Certificate
from tests.integration.egress.intercepting import VALUE, secret
from tests.integration.egress.origins import Origin, file_origin
from tests.integration.egress.sandboxes import PROGRAMS_SECONDS, reaching, runner_for
from tests.integration.egress.sites import git_site, npm_site, pip_site
from tests.integration.egress.test_clients import needs

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ALICE, BOB = Principal("alice"), Principal("bob")
HOME = reaching("origin.test", "other.test")
EVERYTHING = """
    env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/self/mountinfo /proc/net/tcp
    find /etc /tmp /workspace /run /var /dev/shm -xdev -type f -size -2000k -exec cat {} + 2>/dev/null
    ls -laR /etc/sandbox /proc/[0-9]*/fd 2>/dev/null; true"""

Secrets = Callable[..., AbstractAsyncContextManager[BubblewrapRunner]]


@pytest.fixture
def keeping(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    """Make a runner that knows secrets: `async with keeping(port, secret(...)) as runner`."""
    # What the server trusts, and so what a sandbox trusts.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))

    @asynccontextmanager
    async def make(port: int, *secrets: Secret) -> AsyncIterator[BubblewrapRunner]:
        authority = CertificateAuthority.generate([entry for item in secrets for entry in item.entries])
        async with runner_for(port, secrets=OperatorSecrets(secrets, authority)) as runner:
            yield runner

    return make


async def run(
    runner: BubblewrapRunner, script: str, principal: Principal | None = ALICE, policy: ExecutionPolicy = HOME
) -> Finished:
    launch = Launch(ExecutionId("00000000-0000-7000-8000-000000000000"), Command(shell=script), policy, principal)
    with anyio.fail_after(PROGRAMS_SECONDS):
        async with runner.start(launch) as process:
            await process.close_stdin()
            return await finish(process)


@needs("curl")
async def test_curl_is_answered_as_one_who_knows_the_secret_and_nothing_inside_shows_it(
    keeping: Secrets, tls_origin: Origin
) -> None:
    urls = f"https://origin.test:{tls_origin.port}/ https://other.test:{tls_origin.port}/"
    script = f"curl -sSfv {urls} && curl -sSf -H 'Authorization: mine' -x socks5h://127.0.0.1:3128 {urls}; {EVERYTHING}"
    async with keeping(tls_origin.port, secret("origin.test")) as runner:
        finished = await run(runner, script)
    assert finished.stdout.startswith(b"hello" * 4), finished.stderr
    assert finished.exit.denials == ()
    assert [seen.values("Authorization") for seen in tls_origin.seen] == [
        [f"Bearer {VALUE}"],
        [],
        [f"Bearer {VALUE}"],
        ["mine"],
    ]
    shown = finished.stdout + finished.stderr
    assert b"SSL_CERT_FILE=/etc/sandbox/ca-bundle.pem" in shown
    assert b"BEGIN CERTIFICATE" in shown
    assert b"PRIVATE KEY" not in shown
    assert VALUE.encode() not in shown


@needs("curl")
async def test_a_principal_never_gets_the_secret_of_another(keeping: Secrets, tls_origin: Origin) -> None:
    secrets = (
        secret("origin.test", value="for-alice", principals=frozenset({ALICE})),
        secret("origin.test", value="for-bob", principals=frozenset({BOB})),
    )
    async with keeping(tls_origin.port, *secrets) as runner:
        for principal in (ALICE, BOB, Principal("eve"), None):
            finished = await run(runner, f"curl -sSf https://origin.test:{tls_origin.port}/", principal)
            assert finished.stdout == b"hello", finished.stderr
    assert [seen.values("Authorization") for seen in tls_origin.seen] == [["for-alice"], ["for-bob"], [], []]


@needs("curl")
async def test_a_policy_without_the_host_gets_a_denial_that_does_not_show_it(
    keeping: Secrets, tls_origin: Origin
) -> None:
    async with keeping(tls_origin.port, secret("origin.test")) as runner:
        finished = await run(runner, f"curl -sS https://origin.test:{tls_origin.port}/", policy=reaching("other.test"))
        assert finished.exit.exit_code != 0
        assert [denial.rule for denial in finished.exit.denials] == ["network.allowed_domains"]
        assert VALUE not in repr(finished)
        cut_off = await run(runner, "cat /etc/sandbox/ca-bundle.pem; env", policy=ExecutionPolicy())
        assert b"ca-bundle" not in cut_off.stdout
    assert not tls_origin.seen


async def test_the_certificates_inside_cannot_be_changed(keeping: Secrets, tls_origin: Origin) -> None:
    async with keeping(tls_origin.port, secret("origin.test")) as runner:
        script = (
            "echo x >> /etc/sandbox/ca-bundle.pem; rm -f /etc/sandbox/ca-bundle.pem; head -1 /etc/sandbox/ca-bundle.pem"
        )
        finished = await run(runner, script)
    assert finished.stdout == b"-----BEGIN CERTIFICATE-----\n"


PROGRAMS = {
    "python3": "python3 -c \"import urllib.request as u; print(u.urlopen('{url}').read().decode(), end='')\"",
    "openssl": "printf 'GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' | "
    "openssl s_client -quiet -verify_return_error -proxy 127.0.0.1:3128 -connect {host} -servername origin.test "
    "2>/dev/null | tail -1",
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_programs_trust_the_proxy_by_their_environment_alone(
    keeping: Secrets, tls_origin: Origin, name: str
) -> None:
    host = f"origin.test:{tls_origin.port}"
    async with keeping(tls_origin.port, secret("origin.test")) as runner:
        if (await run(runner, f"command -v {name}")).exit.exit_code:
            pytest.skip(f"{name} is not installed")
        finished = await run(runner, PROGRAMS[name].format(url=f"https://{host}/", host=host))
    assert finished.stdout == b"hello", finished.stderr
    assert [seen.values("Authorization") for seen in tls_origin.seen] == [[f"Bearer {VALUE}"]]


INSTALLS = {
    "git": "git clone -q {url}/thing.git copy && cat copy/file",
    "npm": "npm install --no-audit --no-fund --fetch-retries 0 tinything --registry {url} >&2 "
    "&& cat node_modules/tinything/index.js",
    "/usr/bin/pip3": "python3 -m pip install -q --no-cache-dir --retries 0 --disable-pip-version-check --target out "
    "-i {url}/simple tinything && cat out/tinything.py",
}
BROUGHT = {"git": b"content", "npm": b"module.exports = 42\n", "/usr/bin/pip3": b"ANSWER = 42\n"}


@pytest.mark.parametrize("program", [pytest.param(name, marks=needs(name)) for name in INSTALLS])
async def test_private_packages_install_without_the_program_knowing_the_password(
    keeping: Secrets, certificate: Certificate, tmp_path: Path, program: str
) -> None:
    site = tmp_path / "site"
    with file_origin(site, certificate.server, authorization=f"Bearer {VALUE}") as port:
        pip_site(site)
        npm_site(site, f"https://origin.test:{port}")
        await git_site(site, tmp_path / "work")
        async with keeping(port, secret("origin.test")) as runner:
            finished = await run(runner, INSTALLS[program].format(url=f"https://origin.test:{port}"))
            assert finished.stdout == BROUGHT[program], finished.stderr
            refused = await run(runner, INSTALLS[program].format(url=f"https://other.test:{port}"))
            assert refused.exit.exit_code != 0
            assert VALUE not in repr((finished, refused))
