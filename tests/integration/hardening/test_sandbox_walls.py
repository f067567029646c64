"""Commands of BubblewrapRunner stand behind the filter and the scopes, and the record says so."""

from __future__ import annotations

import json
import os
import sys

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.hardening import bpf, landlock, seccomp
from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import RunnerUnavailable
from sandbox_core.testing.runner_harness import finish, launch_of, run_command
from tests.integration.hardening.forked import in_child

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

_NUMBER = NUMBERS[os.uname().machine]
_ATTEMPTS = {
    "new user namespace": (_NUMBER["unshare"], 0x10000000),
    "setns": (_NUMBER["setns"], -1, 0),
    "clone3": (_NUMBER["clone3"], 0, 0),
    "io_uring": (_NUMBER["io_uring_setup"], 1, 0),
    "keyring": (_NUMBER["keyctl"], 0, -3, 1),
    "ptrace": (_NUMBER["ptrace"], 0, 0, 0, 0),
    "perf": (_NUMBER["perf_event_open"], 0, 0, 0, -1, 0),
    "userfaultfd": (_NUMBER["userfaultfd"], 1),
    "TIOCSTI": (_NUMBER["ioctl"], 999, 0x5412, 0),
    "TIOCSTI, high bits": (_NUMBER["ioctl"], 999, 0x5412 | 1 << 32, 0),
    "TIOCLINUX": (_NUMBER["ioctl"], 999, 0x541C, 0),
    "netlink": (_NUMBER["socket"], 16, 3, 0),
    "AF_ALG": (_NUMBER["socket"], 38, 5, 0),
    "memory that is executable when read": (_NUMBER["personality"], 0x0400000),
}
_ATTEMPT = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
for name, (number, *arguments) in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    failed = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(item % 2**64) for item in arguments)) == -1
    answers[name] = ctypes.get_errno() if failed else 0
print(json.dumps(answers))
"""
_FILTERED_ERRNOS = {1, 38, 97}
"""EPERM, ENOSYS and EAFNOSUPPORT."""

_COUNT_LAYERS = f"""
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
attributes = struct.pack("=QQQ", 0, 0, 1)
ruleset = libc.syscall({_NUMBER["landlock_create_ruleset"]}, ctypes.c_char_p(attributes), ctypes.c_size_t(24), 0)
libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0)
layers = 0
while libc.syscall({_NUMBER["landlock_restrict_self"]}, ruleset, 0) == 0:
    layers += 1
print(layers)
"""


async def attempt(runner: BubblewrapRunner) -> dict[str, int]:
    finished = await run_command(runner, Command(argv=("python3", "-c", _ATTEMPT, json.dumps(_ATTEMPTS))))
    assert finished.exit.exit_code == 0, finished.stderr
    answers: dict[str, int] = json.loads(finished.stdout)
    return answers


async def test_calls_that_reach_the_kernel_beside_the_namespaces_are_refused(runner: BubblewrapRunner) -> None:
    answers = await attempt(runner)
    assert {name for name, number in answers.items() if number not in _FILTERED_ERRNOS} == set()


async def test_the_filter_is_what_refuses_them(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "build_filter", lambda: bpf.pack(bpf.ret(seccomp.RET_ALLOW)))
    async with BubblewrapRunner() as unfiltered:
        answers = await attempt(unfiltered)
    through = {name for name, number in answers.items() if number not in _FILTERED_ERRNOS}
    # Whether the others get through is up to the kernel's settings and the namespaces.
    assert through >= {"setns", "clone3", "TIOCSTI", "TIOCSTI, high bits", "TIOCLINUX", "netlink"}, answers


@pytest.mark.skipif(not landlock.detect().scopes, reason="NO LANDLOCK SCOPES HERE: nothing is shown")
async def test_a_landlock_layer_is_in_force(runner: BubblewrapRunner) -> None:
    finished = await run_command(runner, Command(argv=("python3", "-c", _COUNT_LAYERS)))

    def count_outside() -> int:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(write, 1)
            os.execv(sys.executable, [sys.executable, "-I", "-c", _COUNT_LAYERS])
        os.close(write)
        os.waitpid(pid, 0)
        return int(os.read(read, 64))

    # The kernel stacks 16 at most (LANDLOCK_MAX_NUM_LAYERS); one is taken.
    assert int(finished.stdout) == in_child(count_outside) - 1


async def test_the_record_names_what_is_in_force(runner: BubblewrapRunner) -> None:
    async with runner.start(launch_of(Command(argv=("grep", "Seccomp_filters", "/proc/self/status")))) as process:
        finished = await finish(process)
        isolation = process.isolation
    assert finished.stdout.split()[-1:] == [b"1"]
    assert "seccomp" in isolation.layers
    assert isolation.facts["seccomp_sha256"] == seccomp.filter_hash(seccomp.build_filter())
    scopes = landlock.detect()
    assert ("landlock_scopes" in isolation.layers) == bool(scopes.scopes)
    assert isolation.facts.get("landlock_abi") == (str(scopes.abi) if scopes.scopes else None)


async def test_a_machine_without_a_call_table_is_refused(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bytes:
        raise ValueError("there is no system call table for riscv64")

    monkeypatch.setattr(seccomp, "build_filter", refuse)
    with pytest.raises(RunnerUnavailable, match="riscv64"):
        async with BubblewrapRunner():
            raise AssertionError("opened")
