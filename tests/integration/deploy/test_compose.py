"""The composition, its parts started on loopback with the commands, variables and probes that it gives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess  # noqa: TID251  # docker judges its own file
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sandbox_adapters.limits import limits_in_force
from sandbox_adapters.settings import Settings
from tests.integration.deploy.written import PASSWORD, ROOT, TOKEN, Engine, image, services
from tests.integration.mcp.harness import call, connected
from tests.integration.replicas.harness import DEPLOY, need, nginx

pytestmark = pytest.mark.integration

_PROCESSES_OF_THE_SERVER = 256
"""And threads: its workers', the launcher with its children that wait, spares, the probe of its health."""


@pytest.fixture
def redis(engine: Engine, tmp_path: Path) -> None:
    need("redis-server")
    held = services()["redis"]
    where = ["--bind", "127.0.0.1", "--port", str(engine.redis_port), "--dir", str(tmp_path)]
    engine.redis([*held["command"], *where], held["healthcheck"]["test"][1:], held["environment"])


@pytest.mark.anyio
async def test_three_replicas_behind_nginx_answer_as_one(engine: Engine, redis: None, tmp_path: Path) -> None:
    composed, built = services(), image()
    assert built.entrypoint == ["sandbox"]
    replicas = [
        engine.serve(built.arguments, built.variables | service["environment"])
        for service in composed.values()
        if service["image"] == "sandbox-mcp"
    ]
    for replica in replicas:
        probe = [word.replace("8080", str(replica.port)) for word in built.health]
        assert engine.run(probe, {}).returncode == 0
        assert replica.health().json()["store"] == "redis"
    with nginx(DEPLOY / "compose" / "nginx.conf", replicas, tmp_path) as address:
        url = f"{address}/mcp"
        async with connected(url, "auto", TOKEN) as one, connected(url, "legacy", TOKEN) as other:
            started = await call(one, "execute_code_async", command="read line; echo got $line", interactive=True)
            asked = {"execution_id": started["execution_id"]}
            await call(other, "send_stdin", **asked, input_data="it\n")
            said = await call(one, "get_execution_output", **asked, wait=True, wait_seconds=60)
            assert (said["status"], said["stdout"]) == ("completed", "got it\n")
    replicas[0].stop()
    dead = [word.replace("8080", str(replicas[0].port)) for word in built.health]
    assert engine.run(dead, {}).returncode != 0
    assert not any(PASSWORD in replica.log.read_text() for replica in replicas)


@pytest.mark.anyio
async def test_a_server_that_runs_nothing_and_a_worker(engine: Engine, redis: None) -> None:
    fleet, built = services("workers.yaml"), image()
    server, worker = fleet["replica1"], fleet["worker"]
    base = services()["replica1"]["environment"]
    served = engine.serve(server["command"], built.variables | base | server["environment"])
    working = engine.serve(worker["command"], built.variables | worker["environment"], "SANDBOX_WORKER_PORT")
    assert worker["environment"]["SANDBOX_WORKER_PORT"] == built.variables["SANDBOX_PORT"]
    probe = [word.replace("8080", str(working.port)) for word in built.health]
    assert engine.run(probe, {}).returncode == 0
    async with connected(served.url, token=TOKEN) as client:
        assert (await call(client, "execute_code", command="echo it runs"))["stdout"] == "it runs\n"
    assert TOKEN not in json.dumps(worker)


def test_each_replica_is_a_user_of_its_own_and_so_are_the_workers() -> None:
    users = [service["user"] for service in services().values() if service["image"] == "sandbox-mcp"]
    users.append(services("workers.yaml")["worker"]["user"])
    assert len(set(users)) == len(users) == 4
    assert not any("0" in user.split(":") for user in users)


def test_fork_bombs_in_every_place_leave_the_server_room(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [service for service in services().values() if service["image"] == "sandbox-mcp"]
    pids_limit = min(service["pids_limit"] for service in runs)
    for service in (*runs, services("workers.yaml")["worker"]):
        with monkeypatch.context() as given:
            for name, value in service["environment"].items():
                given.setenv(name, value)
            settings = Settings()
        most = limits_in_force(settings, lambda _: ()).ceiling.resource_limits.max_processes
        assert most is not None
        # A program's own, the sandbox's pid 1 that its limit counts too, and bwrap.
        assert pids_limit >= settings.max_concurrent * (most + 2) + _PROCESSES_OF_THE_SERVER


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "workers.yaml"]])
def test_docker_takes_the_composition(files: list[str]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("does not apply: this machine has no docker compose")
    said = subprocess.run(
        [docker, "compose", *(f"--file={DEPLOY / 'compose' / name}" for name in files), "config", "--quiet"],
        env=os.environ | {"REDIS_PASSWORD": PASSWORD, "SANDBOX_AUTH_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr


def test_the_image_s_steps_install_the_whole_package(engine: Engine, tmp_path: Path) -> None:
    """Its build stage, with the packages at hand in place of a registry."""
    stage = (DEPLOY / "compose" / "Dockerfile").read_text().split("\nFROM ")[1]
    source, target = tmp_path / "src", tmp_path / "installed"
    source.mkdir()
    for line in stage.splitlines():
        if line.startswith("COPY "):
            *names, into = line.split()[1:]
            for name in names:
                copied = source / into / ("" if into != "./" else name) if into != name else source / name
                copied.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, copied, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, copied)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(target)]
    installed = engine.run(["python", "-m", "pip", "install", *options, str(source)], {})
    assert installed.returncode == 0, installed.stderr
    assert files(target) == files(ROOT / "src")
    assert (target / "bin" / "sandbox").exists()


def test_the_image_has_what_the_package_and_every_extra_need() -> None:
    pinned = (ROOT / "requirements" / "runtime.txt").read_text()
    for text in distribution("sandbox-mcp").requires or []:
        assert f"\n{Requirement(text).name}==" in pinned, text


def test_one_container_is_given_what_a_replica_is() -> None:
    given = services()["replica1"]
    text = (ROOT / "docs" / "deployment.md").read_text()
    command = text[text.index("docker run ") : text.index(" sandbox-mcp\n```", text.index("docker run "))]
    said = command.replace("\\\n", " ").split()
    options = [
        *(["--security-opt", option] for option in given["security_opt"]),
        *(["--cap-drop", capability] for capability in given["cap_drop"]),
        *(["--tmpfs", mount] for mount in given["tmpfs"]),
        ["--memory", given["mem_limit"]],
        ["--pids-limit", str(given["pids_limit"])],
    ]
    assert {"--read-only", "--init"} <= set(said)
    assert (given["read_only"], given["init"]) == (True, True)
    assert f"SANDBOX_CEILING='{given['environment']['SANDBOX_CEILING']}'" in command
    for name, value in options:
        assert [name, value] in [said[at : at + 2] for at in range(len(said))]


def files(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory))
        for package in directory.glob("sandbox_*")
        if package.suffix != ".dist-info"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
