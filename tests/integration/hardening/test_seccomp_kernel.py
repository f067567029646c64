"""The filter in this machine's kernel: what it refuses, and that without it the same call is not refused so."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sandbox_adapters.runners.hardening import seccomp
from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS
from tests.integration.hardening.forked import EndedBySignal, call, in_child, libc, no_new_privs

pytestmark = pytest.mark.integration

MACHINE = os.uname().machine
NUMBER = NUMBERS[MACHINE]
FILTER = seccomp.build_filter()

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_AT_FDCWD = -100
_HIGH = 1 << 32

x86_only = pytest.mark.skipif(MACHINE != "x86_64", reason="does not apply: only x86_64 has these foreign calls")


def load_filter() -> None:
    no_new_privs()
    instructions = ctypes.create_string_buffer(FILTER)
    program = struct.pack("HxxxxxxP", len(FILTER) // 8, ctypes.addressof(instructions))
    assert libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.c_char_p(program), 0, 0) == 0


def filtered(function: Callable[[], Any]) -> Any:
    def after_loading() -> Any:
        load_filter()
        return function()

    return in_child(after_loading)


REFUSED: list[tuple[str, tuple[int | bytes | None, ...], int]] = [
    ("unshare", (0x10000000,), errno.EPERM),
    ("unshare", (0x00020000,), errno.EPERM),
    ("setns", (-1, 0), errno.EPERM),
    ("clone", (0x10000000 | 0x10000, 0, 0, 0, 0), errno.EPERM),
    ("clone", (0x10000000 | 0x10000 | _HIGH, 0, 0, 0, 0), errno.EPERM),
    ("clone3", (None, 0), errno.ENOSYS),
    ("io_uring_setup", (1, None), errno.ENOSYS),
    ("io_uring_enter", (-1, 0, 0, 0, None, 0), errno.ENOSYS),
    ("io_uring_register", (-1, 0, None, 0), errno.ENOSYS),
    ("mount", (None, None, None, 0, None), errno.EPERM),
    ("umount2", (b"/nonexistent", 0), errno.EPERM),
    ("fsopen", (b"nonexistent", 0), errno.EPERM),
    ("open_tree", (-1, b"", 0), errno.EPERM),
    ("ptrace", (0, 0, 0, 0), errno.EPERM),
    ("process_vm_readv", (0, None, 0, None, 0, 1), errno.EPERM),
    ("pidfd_getfd", (-1, 0, 0), errno.EPERM),
    ("bpf", (0xFFFF, None, 0), errno.EPERM),
    ("perf_event_open", (None, 0, 0, -1, 0), errno.EPERM),
    ("userfaultfd", (1,), errno.ENOSYS),
    ("keyctl", (0, -3, 1), errno.ENOSYS),
    ("add_key", (b"user", b"name", b"x", 1, -3), errno.ENOSYS),
    ("request_key", (None, None, None, 0), errno.ENOSYS),
    ("personality", (0x0400000,), errno.EPERM),
    ("mknodat", (_AT_FDCWD, b"/", 0o020666, 0), errno.EPERM),
    ("ioctl", (-1, 0x5412, None), errno.EPERM),
    ("ioctl", (-1, 0x5412 | _HIGH, None), errno.EPERM),
    ("ioctl", (-1, 0x541C | 0xFFFFFFFF << 32, None), errno.EPERM),
    ("ioctl", (-1, 0x5423, None), errno.EPERM),
    ("fcntl", (-1, 1024, 1), errno.EACCES),
    ("fcntl", (-1, 1024 | _HIGH, 1), errno.EACCES),
    ("fcntl", (-1, 1040, 1), errno.EACCES),
    ("setsockopt", (-1, 6, 31, b"tls", 4), errno.ENOENT),
    ("setsockopt", (-1, 6 | _HIGH, 31, b"tls", 4), errno.ENOENT),
    ("socket", (socket.AF_NETLINK, socket.SOCK_RAW, 0), errno.EAFNOSUPPORT),
    ("socket", (socket.AF_NETLINK | _HIGH, socket.SOCK_DGRAM, 0), errno.EAFNOSUPPORT),
    ("socket", (socket.AF_UNIX, socket.SOCK_RDM, 0), errno.EPROTONOSUPPORT),
    ("socket", (socket.AF_INET, socket.SOCK_SEQPACKET, 0), errno.EPROTONOSUPPORT),
    ("socket", (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP), errno.EPROTONOSUPPORT),
    ("socket", (socket.AF_UNIX, socket.SOCK_RAW, 0), errno.EPERM),
    ("socketpair", (socket.AF_INET, socket.SOCK_STREAM, 0, None), errno.EAFNOSUPPORT),
]


_FOR_ROOT_ALONE = [("unshare", (0x00020000,)), ("fsopen", (b"nonexistent", 0))]


@pytest.mark.parametrize(("name", "arguments", "expected"), REFUSED, ids=lambda item: str(item))
def test_refused_call_is_refused_by_the_filter_alone(
    name: str, arguments: tuple[int | bytes | None, ...], expected: int
) -> None:
    if os.geteuid() != 0 and (name, arguments) in _FOR_ROOT_ALONE:
        pytest.skip("does not apply: the kernel refuses it to this user by itself")
    assert in_child(lambda: call(NUMBER[name], *arguments)) != expected, "refused anyway: the case shows nothing"
    assert filtered(lambda: call(NUMBER[name], *arguments)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="does not apply: only root may open a raw socket anyway")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_raw_sockets_are_refused(family: int) -> None:
    assert in_child(lambda: call(NUMBER["socket"], family, socket.SOCK_RAW, 255)) == 0
    assert filtered(lambda: call(NUMBER["socket"], family, socket.SOCK_RAW, 255)) == errno.EPERM
    assert filtered(lambda: call(NUMBER["socket"], family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 255)) == errno.EPERM


def test_number_that_no_kernel_knows_yet_is_absent() -> None:
    assert filtered(lambda: [call(number) for number in (600, 5000, -1)]) == [errno.ENOSYS] * 3


@x86_only
def test_32_bit_call_ends_the_process() -> None:
    # mov eax, 20 (getpid); int 0x80; ret
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"

    def call_the_old_way() -> bool:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return int(function()) == os.getpid()

    if not in_child(call_the_old_way):
        pytest.skip("does not apply: this kernel runs no 32-bit calls")
    with pytest.raises(EndedBySignal) as ended:
        filtered(call_the_old_way)
    assert ended.value.args == (signal.SIGSYS,)


@x86_only
def test_x32_call_ends_the_process() -> None:
    assert in_child(lambda: call(0x40000000 + 39)) in (0, errno.ENOSYS)
    with pytest.raises(EndedBySignal) as ended:
        filtered(lambda: call(0x40000000 + 39))
    assert ended.value.args == (signal.SIGSYS,)


def test_filter_stays_across_exec_and_cannot_be_taken_off() -> None:
    script = f"import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall({NUMBER['unshare']}, 0x10000000); "

    def execute() -> int:
        pid = os.fork()
        if pid == 0:
            os.execv("/proc/self/exe", ["python", "-c", script + "raise SystemExit(ctypes.get_errno())"])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert filtered(execute) == errno.EPERM


def test_ordinary_calls_pass() -> None:
    def work() -> list[object]:
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append("thread"))
        thread.start()
        thread.join()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            with socket.create_connection(server.getsockname()):
                seen.append("tcp")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK):
            seen.append("udp6")
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        left.close()
        right.close()
        with tempfile.TemporaryDirectory() as folder:
            os.mkfifo(f"{folder}/fifo")
            with open(f"{folder}/file", "w") as file:
                os.posix_fallocate(file.fileno(), 0, 4096)
            os.rename(f"{folder}/file", f"{folder}/other")
            seen.append(sorted(os.listdir(folder)))
        master, slave = os.openpty()
        os.close(master)
        os.close(slave)
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return seen

    assert filtered(work) == ["thread", "tcp", "udp6", ["fifo", "other"], 7]


def test_names_resolve_without_netlink() -> None:
    assert filtered(lambda: [item[4][0] for item in socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)]) == [
        "127.0.0.1"
    ]
    assert "127.0.0.1" in filtered(lambda: [item[4][0] for item in socket.getaddrinfo("localhost", 80)])
