"""Descriptors in messages count for a whole user: no execution may use up what its server needs to start others."""

from __future__ import annotations

import errno
import json
import subprocess  # noqa: TID251 - a server of another user

import pytest

from sandbox_adapters.runners.controls import Control
from tests.integration.attacks.conftest import identity, python_for

pytestmark = pytest.mark.integration

_SECONDS = 100
_HOG = """
import resource, signal, socket
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept, sent = [], 0
try:
    while len(kept) + 20 < hard:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kept += ends
        ends[0].setblocking(False)
        try:
            while True:
                socket.send_fds(ends[0], [b"x"], [0] * 200)
                sent += 200
        except BlockingIOError:
            pass
except OSError as error:
    print(error.errno, sent, flush=True)
signal.pause()
"""
_SERVER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
import anyio
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import LaunchFailed
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Stream
from sandbox_core.testing.runner_harness import launch_of, run_command

async def main():
    controls = Controls(frozenset(Control(name) for name in sys.argv[2].split(",") if name))
    policy = ExecutionPolicy(resource_limits=ResourceLimits(max_open_files=65536))
    hog = Command(argv=("python3", "-c", sys.argv[1]))
    async with BubblewrapRunner(controls=controls, spares=0) as runner:
        async with runner.start(launch_of(hog, policy)) as process:
            said = (await process.read(Stream.STDOUT, 100)).decode()
            try:
                other = (await run_command(runner, Command(shell="echo well"))).stdout.decode()
            except LaunchFailed as error:
                other = str(error)
    print(json.dumps([said, other]))

anyio.run(main)
"""


def _others(*without: Control) -> tuple[str, str]:
    done = subprocess.run(
        [python_for(root=False), "-c", _SERVER, _HOG, ",".join(without)],
        capture_output=True, text=True, timeout=_SECONDS, check=False, **identity(root=False),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said, other = json.loads(done.stdout)
    return said, other


def test_others_start_while_one_has_as_many_in_flight_as_it_may() -> None:
    said, other = _others()
    assert said.split()[0] == str(errno.ETOOMANYREFS)
    assert other == "well\n"


def test_without_its_limit_no_other_starts() -> None:
    said, other = _others(Control.RLIMITS)
    assert said.split()[0] == str(errno.ETOOMANYREFS)
    assert "Too many references" in other
