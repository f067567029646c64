"""Landlock scopes in this machine's kernel: what they keep in, and that without them it would get out."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox_adapters.runners.hardening import landlock
from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from tests.integration.hardening.forked import call, in_child, no_new_privs

pytestmark = pytest.mark.integration

needs_scopes = pytest.mark.skipif(
    not landlock.detect().scopes, reason=f"NO LANDLOCK SCOPES HERE (ABI {landlock.detect().abi}): nothing is shown"
)


def restricted(function: Callable[[], Any]) -> Any:
    def after_restricting() -> Any:
        no_new_privs()
        landlock.restrict()
        return function()

    return in_child(after_restricting)


@pytest.fixture
def abstract_name() -> Iterator[bytes]:
    name = b"\0test-" + secrets.token_hex(8).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        yield name


@pytest.fixture
def sleeper() -> Iterator[int]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    yield pid
    os.close(write)
    os.waitpid(pid, 0)


def connect(name: bytes) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(name)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "connected"


def signal_to(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "sent"


@needs_scopes
def test_abstract_socket_outside_cannot_be_reached(abstract_name: bytes) -> None:
    assert in_child(lambda: connect(abstract_name)) == "connected"
    assert restricted(lambda: connect(abstract_name)) == "EPERM"


@needs_scopes
def test_abstract_socket_inside_can_be_reached() -> None:
    def both_ends() -> str:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(b"\0inside-" + secrets.token_hex(8).encode())
            server.listen()
            return connect(server.getsockname())

    assert restricted(both_ends) == "connected"


@needs_scopes
def test_process_outside_cannot_be_signalled(sleeper: int) -> None:
    assert in_child(lambda: signal_to(sleeper)) == "sent"
    assert restricted(lambda: signal_to(sleeper)) == "EPERM"


@needs_scopes
def test_signals_work_inside_and_from_outside() -> None:
    def signal_own_child() -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert restricted(signal_own_child) == -signal.SIGKILL

    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        no_new_privs()
        landlock.restrict()
        os.write(told, b"1")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    os.close(ready)
    os.close(told)


@needs_scopes
def test_restriction_stays_across_exec_and_leaves_mounting_to_those_who_may(abstract_name: bytes) -> None:
    # An fs right in the ruleset would make every mount of bwrap fail with EPERM.
    needed = NUMBERS[os.uname().machine]
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({abstract_name!r})"

    def execute_and_mount() -> list[int]:
        pid = os.fork()
        if pid == 0:
            os.close(2)
            os.execv("/proc/self/exe", ["python", "-I", "-c", script])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        user_and_mount_namespace, private, recursive = 0x10020000, 1 << 18, 0x4000
        return [
            status,
            call(needed["unshare"], user_and_mount_namespace),
            call(needed["mount"], b"none", b"/", None, recursive | private, None),
        ]

    assert restricted(execute_and_mount) == [1, 0, 0]


@needs_scopes
def test_one_ruleset_serves_many_processes(abstract_name: bytes) -> None:
    ruleset = landlock.make_ruleset(landlock.detect())

    def use() -> str:
        no_new_privs()
        landlock.restrict_self(ruleset)
        return connect(abstract_name)

    try:
        assert not os.get_inheritable(ruleset)
        assert [in_child(use) for _ in range(3)] == ["EPERM"] * 3
    finally:
        os.close(ruleset)


def test_restriction_that_fails_is_an_error() -> None:
    def with_a_wrong_descriptor() -> int | None:
        no_new_privs()
        try:
            landlock.restrict_self(0)
        except OSError as error:
            return error.errno
        return None

    assert in_child(with_a_wrong_descriptor) in (errno.EBADFD, errno.EBADF, errno.EINVAL, errno.ENOSYS)


@pytest.mark.parametrize(("answer", "abi", "scopes"), [(-1, 0, 0), (1, 1, 0), (5, 5, 0), (6, 6, 2), (9, 9, 2)])
def test_what_is_reported_is_what_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, answer: int, abi: int, scopes: int
) -> None:
    monkeypatch.setattr(landlock, "_syscall", lambda *_: answer)
    found = landlock.detect()
    assert (found.abi, len(found.scopes)) == (abi, scopes)


def test_kernel_without_scopes_gets_no_ruleset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_syscall", lambda *_: -1)
    assert landlock.restrict() == landlock.Landlock(0, ())
    with pytest.raises(ValueError, match="no scopes"):
        landlock.make_ruleset(landlock.detect())
