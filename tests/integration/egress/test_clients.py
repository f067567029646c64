"""Real programs through the proxy, told of it only by environment variables."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from sandbox_adapters.egress import proxy_environment
from tests.integration.egress.conftest import BOUND_SECONDS, Certificate, Running, Serving
from tests.integration.egress.origins import Origin, file_origin
from tests.integration.egress.sites import git_site, npm_site, pip_site

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

BIG = 8 << 20


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: bytes
    stderr: bytes


async def run(
    running: Running, argv: list[str], folder: Path, *, certificate: Certificate | None = None, scheme: str = "http"
) -> Done:
    """Run a program with an environment like a sandbox's: no proxy but ours, and nothing that goes around it."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "NPM_CONFIG_USERCONFIG": str(folder / "npmrc"),
        "NPM_CONFIG_UPDATE_NOTIFIER": "false",
    }
    for name, value in proxy_environment(running.port).items():
        environment[name] = value.replace("http://", f"{scheme}://")
    if certificate is not None:
        for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"):
            environment[name] = str(certificate.file)
    with anyio.fail_after(2 * BOUND_SECONDS):
        done = await anyio.run_process(argv, env=environment, cwd=folder, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@needs("curl")
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_curl(
    serving: Serving, origin: Origin, tls_origin: Origin, certificate: Certificate, tmp_path: Path, scheme: str
) -> None:
    curl = ["curl", "-sS", "--fail-with-body", "--max-time", "55"]
    upload = tmp_path / "upload"
    upload.write_bytes(os.urandom(BIG))
    async with serving(ports=[origin.port], tls_ports=[tls_origin.port]) as running:
        for base in (f"http://origin.test:{origin.port}", f"https://origin.test:{tls_origin.port}"):
            both = await run(
                running, [*curl, f"{base}/1", f"{base}/2"], tmp_path, certificate=certificate, scheme=scheme
            )
            assert (both.stdout, both.returncode) == (b"hellohello", 0), both.stderr
            argv = [*curl, "-T", str(upload), f"{base}/up"]
            sent = await run(running, argv, tmp_path, certificate=certificate, scheme=scheme)
            assert sent.stdout.decode() == hashlib.sha256(upload.read_bytes()).hexdigest(), sent.stderr
            argv = [*curl, "-o", "down", f"{base}/big?bytes={BIG}"]
            assert (await run(running, argv, tmp_path, certificate=certificate, scheme=scheme)).returncode == 0
            assert (tmp_path / "down").stat().st_size == BIG
        assert not running.proxy.denials()
        denied = await run(running, [*curl, f"http://denied.test:{origin.port}/"], tmp_path, scheme=scheme)
        assert denied.returncode != 0
        assert running.rules_denied() == ["denied_domains: denied.test"]
        if scheme == "http":
            assert b"Rule: denied_domains: denied.test" in denied.stdout


@needs("curl")
async def test_curl_cannot_hide_another_server_name_behind_an_allowed_one(
    serving: Serving, tls_origin: Origin, certificate: Certificate, tmp_path: Path
) -> None:
    port = tls_origin.port
    async with serving(tls_ports=[port]) as running:
        argv = ["curl", "-sS", "--connect-to", f"other.test:{port}:origin.test:{port}", f"https://other.test:{port}/"]
        done = await run(running, argv, tmp_path, certificate=certificate)
        assert done.returncode != 0
        assert running.rules_denied() == ["tls_server_name"]
    assert not tls_origin.seen


async def test_pip_installs_from_an_index(serving: Serving, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip_site(site)
    with file_origin(site) as port:
        async with serving(ports=[port]) as running:
            argv = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path / "out"), "tinything"]
            index = ["-i", f"http://origin.test:{port}/simple", "--trusted-host", "origin.test"]
            done = await run(running, [*argv, *index], tmp_path)
            assert done.returncode == 0, done.stderr
            index = [
                "-i",
                f"http://no.example:{port}/simple",
                "--trusted-host",
                "no.example",
                "--retries",
                "0",
            ]
            refused = await run(running, [*argv, *index], tmp_path)
            assert refused.returncode != 0
            assert running.rules_denied() == ["allowed_domains"]
    assert (tmp_path / "out" / "tinything.py").read_text() == "ANSWER = 42\n"


@needs("git")
async def test_git_clones_over_dumb_http(serving: Serving, tmp_path: Path) -> None:
    await git_site(tmp_path / "site", tmp_path / "work")
    with file_origin(tmp_path / "site") as port:
        async with serving(ports=[port]) as running:
            done = await run(running, ["git", "clone", "-q", f"http://origin.test:{port}/thing.git", "copy"], tmp_path)
            assert done.returncode == 0, done.stderr
            refused = await run(running, ["git", "clone", f"http://denied.test:{port}/thing.git", "no"], tmp_path)
            assert b"403" in refused.stderr
    assert (tmp_path / "copy" / "file").read_text() == "content"


REQUESTS = """
import sys, requests
for base in sys.argv[1:3]:
    session = requests.Session()
    assert session.get(base + "/1").text == "hello"
    assert session.post(base + "/2", data=b"x" * 100000).status_code == 200
    assert session.post(base + "/3", data=(b"y" * 1000 for _ in range(50))).status_code == 200
answer = requests.get(sys.argv[3])
print(answer.status_code, answer.text)
"""


async def test_requests(
    serving: Serving, origin: Origin, tls_origin: Origin, certificate: Certificate, tmp_path: Path
) -> None:
    pytest.importorskip("requests")
    async with serving(ports=[origin.port], tls_ports=[tls_origin.port]) as running:
        argv = [
            sys.executable, "-c", REQUESTS, f"http://origin.test:{origin.port}",
            f"https://origin.test:{tls_origin.port}", f"http://denied.test:{origin.port}/",
        ]  # fmt: skip
        done = await run(running, argv, tmp_path, certificate=certificate)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"403 The sandbox's network policy refused denied.test")
    assert [seen.body_bytes for seen in (*origin.seen, *tls_origin.seen)] == [0, 100000, 50000] * 2


HTTPX = """
import sys, httpx
with httpx.Client() as client:
    assert client.get(sys.argv[1]).text == "hello"
    assert client.get(sys.argv[2]).text == "hello"
    print(client.get(sys.argv[3]).status_code)
"""


async def test_httpx(
    serving: Serving, origin: Origin, tls_origin: Origin, certificate: Certificate, tmp_path: Path
) -> None:
    urls = [
        f"http://origin.test:{origin.port}",
        f"https://origin.test:{tls_origin.port}",
        f"http://denied.test:{origin.port}",
    ]
    async with serving(ports=[origin.port], tls_ports=[tls_origin.port]) as running:
        done = await run(running, [sys.executable, "-c", HTTPX, *urls], tmp_path, certificate=certificate)
    assert done.stdout == b"403\n", done.stderr


@needs("wget")
async def test_wget(serving: Serving, origin: Origin, tmp_path: Path) -> None:
    async with serving(ports=[origin.port]) as running:
        done = await run(running, ["wget", "-qO-", f"http://origin.test:{origin.port}/"], tmp_path)
    assert done.stdout == b"hello", done.stderr


@needs("curl")
async def test_the_commands_own_loopback_is_not_sent_to_the_proxy(
    serving: Serving, origin: Origin, tmp_path: Path
) -> None:
    async with serving(ports=[]) as running:
        for host in ("127.0.0.1", "localhost"):
            done = await run(running, ["curl", "-sS", "-4", f"http://{host}:{origin.port}/"], tmp_path)
            assert done.stdout == b"hello", done.stderr
        assert running.proxy.usage().connections == 0


@needs("npm")
async def test_npm_installs_from_a_registry(serving: Serving, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with file_origin(site) as port:
        base = f"http://origin.test:{port}"
        npm_site(site, base)
        project = tmp_path / "project"
        project.mkdir()
        async with serving(ports=[port]) as running:
            argv = ["npm", "install", "--no-audit", "--no-fund", "--registry", base, "tinything"]
            done = await run(running, argv, project)
            assert done.returncode == 0, done.stderr
            assert not running.proxy.denials()
    assert (project / "node_modules" / "tinything" / "index.js").read_text() == "module.exports = 42\n"
