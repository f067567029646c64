"""What deploy/ says to start, started as an engine would: these arguments, and only the variables that are given."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess  # noqa: TID251  # what deploy/ starts are programs
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import yaml

from tests.integration.mcp.harness import PATIENCE_SECONDS, Served, eventually
from tests.integration.replicas.harness import DEPLOY
from tests.ports import free_port

ROOT = DEPLOY.parent
TOKEN = "t" * 40
PASSWORD = "s3cret-of-redis"
METRICS_TOKEN = "m" * 40
_START_SECONDS = 2 * PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Image:
    """What the last stage of deploy/compose/Dockerfile says of a container."""

    variables: dict[str, str]
    entrypoint: list[str]
    arguments: list[str]
    health: list[str]


class Engine:
    """Starts programs in a directory, `127.0.0.1` in place of the names of services; ends them in the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.redis_port = free_port()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, command: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a probe or a check to its end."""
        return subprocess.run(
            command, env=self._given(variables), capture_output=True, text=True, timeout=_START_SECONDS, check=False
        )

    def serve(self, arguments: Sequence[str], variables: Mapping[str, str], port_name: str = "SANDBOX_PORT") -> Served:
        """Start `sandbox` on a free port of loopback, with the Redis of this engine; returns when it takes work."""
        port = free_port()
        log = self.directory / f"sandbox-{port}.log"
        mine = {name: self._here(value) for name, value in variables.items()} | {port_name: str(port)}
        for name in ("SANDBOX_HOST", "SANDBOX_WORKER_HOST"):
            if name in mine:
                mine[name] = "127.0.0.1"
        served = Served(self._start(["sandbox", *arguments], mine, log), port, log)

        def is_ready() -> bool:
            assert served.process.poll() is None, log.read_text()
            try:
                return served.health().status_code == 200
            except httpx2.HTTPError:
                return False

        eventually(is_ready, f"{arguments} takes work; its log: {log.read_text()}", seconds=_START_SECONDS)
        return served

    def redis(self, command: Sequence[str], probe: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start a Redis with this command; returns when its probe is content. Without the password it tells nothing."""
        port = str(self.redis_port)
        self._stack.callback(self._redis_is_gone)
        self._start(command, variables, self.directory / "redis.log")
        ask = [*probe[:1], "-p", port, *probe[1:]]
        eventually(lambda: self.run(ask, variables).stdout == "PONG\n", "Redis answers", seconds=_START_SECONDS)
        assert "NOAUTH" in "".join(self.run([*ask[:3], "keys", "*"], {}).stdout)

    def _redis_is_gone(self) -> None:
        """See that the signal to what was started has ended Redis, and not a shell around it alone."""
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.redis_port)), "Redis outlived the program that was started"

    def _start(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._given(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._stack.callback(_end, process)
        return process

    def _given(self, variables: Mapping[str, str]) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**variables, "PATH": path}

    def _here(self, value: str) -> str:
        return re.sub(r"@[a-z-]+:6379/", f"@127.0.0.1:{self.redis_port}/", value)


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a manifest: what it runs and with which variables, secrets filled in."""

    raw: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)

    @property
    def variables(self) -> dict[str, str]:
        found = {}
        for entry in self.raw["env"]:
            secret = entry.get("valueFrom", {}).get("secretKeyRef")
            found[entry["name"]] = entry["value"] if secret is None else self.secrets[secret["key"]]
        return found


def image() -> Image:
    """Read the Dockerfile."""
    text = (DEPLOY / "compose" / "Dockerfile").read_text().rsplit("\nFROM ", 1)[1].replace("\\\n", " ")
    lines = dict(re.findall(r"^(ENV|ENTRYPOINT|CMD|HEALTHCHECK) (.+)$", text, re.MULTILINE))
    pairs = [word.partition("=") for word in shlex.split(lines["ENV"])]
    return Image(
        variables={name: value for name, _, value in pairs if name != "PATH"},
        entrypoint=json.loads(lines["ENTRYPOINT"]),
        arguments=json.loads(lines["CMD"]),
        health=json.loads(lines["HEALTHCHECK"].partition(" CMD ")[2]),
    )


class _Compose(yaml.SafeLoader):
    """YAML with the tag of compose files that replaces instead of adding."""


_Compose.add_multi_constructor("!override", lambda loader, _, node: _constructed(loader, node))


def services(name: str = "compose.yaml") -> dict[str, Any]:
    """Return the services of a composition as they are written, with its two variables filled in."""
    given = {"REDIS_PASSWORD": PASSWORD, "SANDBOX_AUTH_TOKEN": TOKEN}
    text = (DEPLOY / "compose" / name).read_text()
    filled = re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda found: given[found[1]], text)
    assert "${" not in filled
    loaded = yaml.load(filled, _Compose)["services"]  # a SafeLoader with one tag more
    assert isinstance(loaded, dict)
    return loaded


def containers(name: str) -> dict[str, Container]:
    """Return the containers of a manifest by the name of their workload, with the Secret that its head says to make."""
    text = (DEPLOY / "kubernetes" / name).read_text()
    values = {"auth-token": TOKEN, "redis-password": PASSWORD, "metrics-token": METRICS_TOKEN}
    secrets = {}
    for key, written in re.findall(r"--from-literal=([a-z-]+)=(\S+)", text):
        secrets[key] = values.get(key) or written.replace("PASSWORD", PASSWORD)
    found = {}
    for document in yaml.safe_load_all(text):
        if document["kind"] in {"Deployment", "StatefulSet"}:
            (only,) = document["spec"]["template"]["spec"]["containers"]
            found[document["metadata"]["name"]] = Container(only, secrets or values)
    return found


def _constructed(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
