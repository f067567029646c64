"""A server that is root in a container with a map of ids isolates, with the ids that it has."""

from __future__ import annotations

import os
import sys

import anyio
import pytest

from tests.integration.attacks.conftest import python_for

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_MAPPED = 65536
_CONTAINER = """
import ctypes, os, sys
ready_read, ready_write = os.pipe()
map_read, map_write = os.pipe()
pid = os.fork()
if pid == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(ready_write, b"x")
    os.read(map_read, 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.execv(sys.argv[1], [sys.argv[1], "-c", sys.argv[2]])
os.read(ready_read, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write(f"0 100000 {sys.argv[3]}")
os.write(map_write, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
_SERVER = """
import anyio
from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_core.domain.command import Command
from sandbox_core.testing.runner_harness import finish, launch_of

async def main():
    async with BubblewrapRunner() as runner:
        async with runner.start(launch_of(Command(argv=("id", "-u")))) as process:
            finished = await finish(process)
            print(process.isolation.kernel_uid, finished.exit.exit_code, finished.stdout.decode())

anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_gives_each_execution_one_of_the_ids_that_it_has(anyio_backend: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("does not apply: only root makes such a container")
    python = python_for(root=False)
    with anyio.fail_after(100):
        done = await anyio.run_process(
            [python, "-c", _CONTAINER, python, _SERVER, str(_MAPPED)],
            check=False,
            cwd="/",
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        )
    assert done.returncode == 0, done.stderr.decode()
    uid, code, seen = done.stdout.decode().split()
    assert _MAPPED // 2 <= int(uid) < _MAPPED
    assert (code, seen) == ("0", "1000")
