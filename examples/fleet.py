"""Start the third way to deploy on loopback: Redis, API servers behind nginx, and workers. For the demo."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import httpx2

from examples.serving import SANDBOX, START_SECONDS, descendants, free_port

NEEDED = {"redis-server": "redis-server", "nginx": "nginx"}
"""Programs, and the Debian or Ubuntu packages that have them."""

STOP_SECONDS = 15.0
NGINX_FILE = Path(__file__).parents[1] / "deploy" / "nginx" / "round-robin.conf"


@dataclass(slots=True)
class Program:
    """A running program, `name` as people call it. `port` is where it listens on loopback."""

    name: str
    port: int
    process: anyio.abc.Process

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self.process.returncode is None

    async def kill(self) -> frozenset[int]:
        """End it with SIGKILL, as a crash or a lost machine does; return the ids of the processes below it."""
        below = descendants(self.process.pid)
        self.process.kill()
        await self.process.wait()
        return below

    async def health(self) -> dict[str, object] | None:
        """Return what /health says; None when there is no answer."""
        async with httpx2.AsyncClient(timeout=5.0, verify=False) as http:  # plain HTTP: reading authorities takes 30 ms
            try:
                answer: dict[str, object] = (await http.get(f"http://127.0.0.1:{self.port}/health")).json()
            except (httpx2.HTTPError, ValueError):
                return None
            return answer


@dataclass(slots=True)
class Fleet:
    """Everything that was started, in order. Clients use `url`."""

    directory: Path
    programs: list[Program] = field(default_factory=list)
    url: str = ""
    servers: list[Program] = field(default_factory=list)
    workers: list[Program] = field(default_factory=list)

    async def start(self, name: str, argv: Sequence[object], port: int, environment: Mapping[str, str]) -> Program:
        """Start a program in a session of its own, so that Ctrl-C at the terminal reaches only us."""
        with (self.directory / f"{name.replace(' ', '-')}.log").open("wb") as log:
            process = await anyio.open_process(
                [str(part) for part in argv],
                stdin=-3,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )
        program = Program(name, port, process)
        self.programs.append(program)
        return program

    async def until_healthy(self, programs: Sequence[Program]) -> None:
        """Return when all of them answer. Raises RuntimeError with the log of one that does not."""
        for program in programs:
            if not await self._comes_up(program):
                log = anyio.Path(self.directory / f"{program.name.replace(' ', '-')}.log")
                raise RuntimeError(f"{program.name} did not come up:\n{await log.read_text(errors='replace')}")

    async def _comes_up(self, program: Program) -> bool:
        with anyio.move_on_after(START_SECONDS):
            while program.is_running:
                if (await program.health() or {}).get("status") == "ok":
                    return True
                await anyio.sleep(0.05)
        return False

    async def stop(self) -> None:
        """End everything in the opposite order: SIGTERM, and SIGKILL for what does not end in time."""
        with anyio.move_on_after(STOP_SECONDS):
            for group in (self.servers + self.workers, self.programs):
                for program in group:
                    if program.is_running:
                        program.process.send_signal(signal.SIGTERM)
                for program in group:
                    await program.process.wait()
        for program in self.programs:
            if program.is_running:
                program.process.kill()
                await program.process.wait()


def missing_programs() -> list[str]:
    """Return the packages to install before a fleet can be started."""
    return [package for program, package in NEEDED.items() if shutil.which(program) is None]


@asynccontextmanager
async def fleet(
    directory: Path, *, servers: int = 2, workers: int = 3, concurrency: int = 4, variables: Mapping[str, str]
) -> AsyncIterator[Fleet]:
    """Run a fleet while the context lasts; `variables` are settings of every server and worker."""
    started = Fleet(directory)
    try:
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("SANDBOX_", "REDIS_"))}
        redis = await _start_redis(started, plain)
        url = f"redis://127.0.0.1:{redis.port}/0"
        mine = {**plain, "REDIS_URL": url, "SANDBOX_QUEUE_URL": url, "SANDBOX_LOG_FILE": "", **variables}
        for number in range(1, servers + 1):
            port = free_port()
            argv = [SANDBOX, "serve", "--no-local-runner", "--port", str(port)]
            started.servers.append(await started.start(f"server {number}", argv, port, mine))
        for number in range(1, workers + 1):
            port = free_port()
            argv = [SANDBOX, "worker", "--concurrency", str(concurrency), "--port", str(port)]
            started.workers.append(await started.start(f"worker {number}", argv, port, mine))
        await started.until_healthy([*started.servers, *started.workers])
        nginx = await _start_nginx(started, plain)
        await started.until_healthy([nginx])
        started.url = f"http://127.0.0.1:{nginx.port}/mcp"
        yield started
    finally:
        with anyio.CancelScope(shield=True):
            await started.stop()


async def _start_redis(started: Fleet, environment: Mapping[str, str]) -> Program:
    port = free_port()
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", started.directory, "--save", ""]
    redis = await started.start("redis", [*argv, "--appendonly", "yes"], port, environment)
    with anyio.fail_after(START_SECONDS):
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
            except OSError:
                await anyio.sleep(0.02)
            else:
                return redis


async def _start_nginx(started: Fleet, environment: Mapping[str, str]) -> Program:
    """Run nginx with the file of deploy/ for exactly these servers."""
    port, directory = free_port(), started.directory
    addresses = iter(started.servers)

    def address(_: re.Match[str]) -> str:
        server = next(addresses, None)
        return "" if server is None else f"server 127.0.0.1:{server.port} max_fails=1 fail_timeout=2s;"

    text = re.sub(r"server localhost:\d+ [^;]*;", address, NGINX_FILE.read_text())
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    as_root = "user root;" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    file = directory / "nginx.conf"
    file.write_text(
        f"{as_root} daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr crit;"
        f" events {{}} http {{ access_log off; {temporary} {text} }}"
    )
    return await started.start("nginx", ["nginx", "-e", "stderr", "-p", directory, "-c", file], port, environment)
