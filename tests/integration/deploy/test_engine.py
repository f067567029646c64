"""The compositions on a Docker engine, where one is with their images: built, started, used, and partly killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess  # noqa: TID251  # drives the docker command line
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.version import Version

from tests.integration.deploy.written import PASSWORD, ROOT, TOKEN
from tests.integration.mcp.harness import PATIENCE_SECONDS, call, connected, eventually
from tests.integration.replicas.harness import DEPLOY
from tests.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.timeout(900)]

_IMAGES = ("python:3.13-slim", "redis:7-alpine", "nginx:1.28-alpine")
_REPLICAS = ("replica1", "replica2", "replica3")
_OLDEST_COMPOSE = Version("2.24.4")
_SLOW_SECONDS = 600
_BOMB = (
    "import os\n"
    "for n in range(8):\n"
    "    if os.fork() == 0:\n"
    "        held = bytearray(1000 << 20)\n"
    "        held[::4096] = bytes(len(held) // 4096)\n"
    "        os._exit(0)\n"
    "print(sum(os.WIFSIGNALED(os.wait()[1]) for n in range(8)) > 0)\n"
)


class Composition:
    """One project of `docker compose`, with a port of its own and its two secrets."""

    def __init__(self, files: tuple[str, ...], directory: Path) -> None:
        self.port = free_port()
        mine = directory / "mine.yaml"
        mine.write_text(f'services: {{proxy: {{ports: !override ["127.0.0.1:{self.port}:80"]}}}}\n')
        named = [str(DEPLOY / "compose" / name) for name in files]
        self._project = ["compose", "-p", f"sandbox-{self.port}", *(f"--file={name}" for name in [*named, str(mine)])]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def do(self, *words: str) -> str:
        """Run a command of compose on the project; fails with what it said."""
        variables = os.environ | {"REDIS_PASSWORD": PASSWORD, "SANDBOX_AUTH_TOKEN": TOKEN}
        said = docker(*self._project, *words, variables=variables)
        assert said.returncode == 0, f"{said.stdout}{said.stderr}{self.logs() if words[0] == 'up' else ''}"
        return said.stdout

    def services(self) -> dict[str, str]:
        """Return the service of each container that runs."""
        lines = self.do("ps", "--format", "{{.ID}} {{.Service}}").splitlines()
        return dict(line.split() for line in lines)

    def owner_of(self, execution_id: str) -> str:
        """Wait until it runs somewhere; returns the container, for which its node is named."""
        ask = ["exec", "--no-TTY", "redis", "redis-cli", "get", f"execution:{execution_id}"]
        node = eventually(lambda: json.loads(self.do(*ask))["execution"].get("node"), f"{execution_id} runs")
        return str(node).split("-")[0]

    def logs(self) -> str:
        return docker(*self._project, "logs", "--tail=20", variables=dict(os.environ)).stdout


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Composition]:
    yield from up(Composition(("compose.yaml",), tmp_path))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Composition]:
    yield from up(Composition(("compose.yaml", "workers.yaml"), tmp_path), "--scale=worker=2")


def up(composition: Composition, *options: str) -> Iterator[Composition]:
    need_an_engine()
    try:
        composition.do("up", "--build", "--detach", "--wait", "--quiet-pull", *options)
        yield composition
    finally:
        composition.do("down", "--volumes", "--timeout=5")


async def test_replicas_isolate_bound_and_outlive_each_other(replicas: Composition) -> None:
    for service in _REPLICAS:
        assert "The bubblewrap runner can work here." in replicas.do("exec", "--no-TTY", service, "sandbox", "doctor")
    async with connected(replicas.url, token=TOKEN) as client:
        done = await call(client, "execute_code", command="id -u; printf '#!/bin/sh\necho made' > a; chmod +x a; ./a")
        assert (done["exit_code"], done["stdout"]) == (0, "1000\nmade\n")
        bombed = await call(client, "execute_code", command=f"exec python3 -c {shlex.quote(_BOMB)}")
        assert (bombed["exit_code"], bombed["stdout"]) == (0, "True\n")
        assert set(replicas.do("ps", "--all", "--format", "{{.State}}").split()) == {"running"}
        started = await call(client, "execute_code_async", command="read line; echo got $line", interactive=True)
        asked = {"execution_id": started["execution_id"]}
        owner = replicas.owner_of(asked["execution_id"])
        replicas.do("kill", next(service for service in _REPLICAS if service != replicas.services()[owner]))
        await call(client, "send_stdin", **asked, input_data="it\n")
        read = await call(client, "get_execution_output", **asked, wait=True, wait_seconds=PATIENCE_SECONDS)
        assert (read["status"], read["stdout"]) == ("completed", "got it\n")


async def test_workers_run_what_servers_that_may_not_accept(fleet: Composition) -> None:
    with pytest.raises(AssertionError, match="not permitted"):
        fleet.do("exec", "--no-TTY", "replica1", "unshare", "--user", "true")
    async with connected(fleet.url, token=TOKEN) as client:
        started = await call(client, "execute_code_async", command="echo begun; sleep 5; echo done", retry_safe=True)
        asked = {"execution_id": started["execution_id"]}
        owner = fleet.owner_of(asked["execution_id"])
        assert fleet.services()[owner] == "worker"
        fleet.do("kill", "replica2")
        assert docker("kill", owner).returncode == 0
        read = await call(client, "get_execution_output", **asked, wait=True, wait_seconds=PATIENCE_SECONDS)
        assert read["stdout"] == "begun\nbegun\ndone\n"


@cache
def need_an_engine() -> None:
    """Skip where there is no engine, or an image of the compositions cannot be had."""
    if shutil.which("docker") is None or docker("info").returncode:
        pytest.skip("does not apply: this machine has no Docker engine")
    version = docker("compose", "version", "--short")
    if version.returncode or Version(version.stdout.strip()) < _OLDEST_COMPOSE:
        pytest.skip(f"does not apply: this machine has no docker compose {_OLDEST_COMPOSE} or later")
    for image in _IMAGES:
        if docker("image", "inspect", image).returncode and docker("pull", "--quiet", image).returncode:
            pytest.skip(f"does not apply: the image {image} cannot be had here")


def docker(*words: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", *words], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=_SLOW_SECONDS, check=False
    )
