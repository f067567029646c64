"""Real programs inside a sandbox, told of the proxy by nothing but its environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from tests.integration.egress.conftest import Certificate
from tests.integration.egress.origins import Origin, file_origin
from tests.integration.egress.sandboxes import denied, reaching, run_in, runner_for
from tests.integration.egress.sites import git_site, npm_site, pip_site
from tests.integration.egress.test_clients import needs

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

HOME = reaching("origin.test")


@asynccontextmanager
async def visiting(site: Path) -> AsyncIterator[tuple[BubblewrapRunner, str, str]]:
    """Serve the files of `site`; yield a runner, and the site's address under an allowed and under another name."""
    with file_origin(site) as port:
        async with runner_for(port) as runner:
            yield runner, f"http://origin.test:{port}", f"http://other.test:{port}"


@needs("curl")
async def test_curl_by_http_connect_and_socks(origin: Origin, tls_origin: Origin, certificate: Certificate) -> None:
    urls = f"http://origin.test:{origin.port}/ https://origin.test:{tls_origin.port}/"
    script = f"""
        curl -sSf {urls} && echo
        curl -sSf -x socks5h://127.0.0.1:3128 {urls} && echo
        head -c 300000 /dev/zero > up && curl -sSf -T up {urls} > /dev/null && echo sent
        curl -sSf 'http://origin.test:{origin.port}/?bytes=8388608' | wc -c"""
    async with runner_for(origin.port, tls_origin.port) as runner:
        finished = await run_in(runner, script, HOME, certificate=certificate)
    assert finished.stdout.split() == [b"hellohello", b"hellohello", b"sent", b"8388608"], finished.stderr
    assert finished.exit.denials == ()
    assert finished.exit.network_sent_bytes is not None
    assert finished.exit.network_sent_bytes > 300_000
    assert finished.exit.network_received_bytes is not None
    assert finished.exit.network_received_bytes > 8_388_608


@needs("/usr/bin/pip3")
async def test_pip(tmp_path: Path) -> None:
    pip_site(tmp_path)
    async with visiting(tmp_path) as (runner, base, other):
        install = "python3 -m pip install -q --no-cache-dir --retries 0 --target out tinything"
        trust = "--trusted-host origin.test --trusted-host other.test -i"
        script = f"{install} {trust} {base}/simple && cat out/tinything.py; {install} {trust} {other}/simple"
        finished = await run_in(runner, script, HOME)
    assert finished.stdout == b"ANSWER = 42\n", finished.stderr
    assert finished.exit.exit_code != 0
    assert denied(finished) == [(other.removeprefix("http://"), "network.allowed_domains")]


@needs("git")
async def test_git(tmp_path: Path) -> None:
    await git_site(tmp_path / "site", tmp_path / "work")
    async with visiting(tmp_path / "site") as (runner, base, other):
        script = f"git clone -q {base}/thing.git copy && cat copy/file; git clone -q {other}/thing.git no"
        finished = await run_in(runner, script, HOME)
    assert finished.stdout == b"content", finished.stderr
    assert b"403" in finished.stderr
    assert denied(finished)[0] == (other.removeprefix("http://"), "network.allowed_domains")


@needs("npm")
async def test_npm(tmp_path: Path) -> None:
    with file_origin(tmp_path) as port:
        npm_site(tmp_path, f"http://origin.test:{port}")
        async with runner_for(port) as runner:
            install = "npm install --no-audit --no-fund --fetch-retries 0 tinything --registry"
            script = f"""
                {install} http://origin.test:{port} >&2 && cat node_modules/tinything/index.js
                cd /tmp && {install} http://other.test:{port} >&2"""
            finished = await run_in(runner, script, HOME)
    assert finished.stdout == b"module.exports = 42\n", finished.stderr
    assert finished.exit.exit_code != 0
    assert denied(finished) == [(f"other.test:{port}", "network.allowed_domains")]


PYTHON = """
import sys, urllib.error, urllib.request
from pip._vendor import requests
plain, tls, refused = sys.argv[1:]
for url in (plain, tls):
    assert urllib.request.urlopen(url).read() == b"hello"
    session = requests.Session()
    assert session.get(url).text == "hello"
    assert session.post(url, data=b"x" * 100000).status_code == 200
try:
    urllib.request.urlopen(refused)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().splitlines()[1])
print(requests.get(refused).status_code)
"""


@needs("/usr/bin/pip3")
async def test_urllib_and_requests(origin: Origin, tls_origin: Origin, certificate: Certificate) -> None:
    urls = f"http://origin.test:{origin.port}/ https://origin.test:{tls_origin.port}/ http://other.test:{origin.port}/"
    async with runner_for(origin.port, tls_origin.port) as runner:
        script = f"python3 - {urls} <<'END'\n{PYTHON}\nEND"
        finished = await run_in(runner, script, HOME, certificate=certificate)
    assert finished.stdout.decode().splitlines() == [
        "403 Rule: allowed_domains. Reason: no entry covers this name.",
        "403",
    ], finished.stderr
    assert finished.exit.denials[0].count == 2


NODE = """
const http = require("http");
const [host, port] = process.argv.slice(2);
const proxy = new URL(process.env.http_proxy);
const place = {host: proxy.hostname, port: proxy.port};
http.get({...place, path: `http://${host}:${port}/`, headers: {host: `${host}:${port}`}}, answer => {
  answer.on("data", data => process.stdout.write(data));
});
"""


@needs("node")
async def test_node(origin: Origin) -> None:
    async with runner_for(origin.port) as runner:
        finished = await run_in(runner, f"node - origin.test {origin.port} <<'END'\n{NODE}\nEND", HOME)
    assert finished.stdout == b"hello", finished.stderr
