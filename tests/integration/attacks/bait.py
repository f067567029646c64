"""What the host has that an attack is after, made for one round and taken away after it."""

from __future__ import annotations

import ctypes
import os
import selectors
import shutil
import socket
import subprocess  # noqa: TID251 - a process for the attacks to find
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sandbox_adapters.runners.hardening.syscall_numbers import NUMBERS

SECRET_VARIABLE = "SANDBOX_ATTACK_SECRET"
_CALLS = (
    "open_tree", "setns", "clone3", "io_uring_setup", "name_to_handle_at", "ptrace", "process_vm_readv", "ioctl",
    "socket", "add_key", "io_setup",
)  # fmt: skip
_AMOUNTS = {
    "files": 40_000, "processes": 60, "bomb_mib": 100, "descriptors": 200, "signals": 6000, "cpu_seconds": 2.2,
}  # fmt: skip
"""Each well over the limit that its case sets, and small beside any machine."""
_IPC_CREAT, _IPC_RMID = 0o1000, 0
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def set_out(roots: str | None) -> Iterator[dict[str, Any]]:
    """Have everything there. `roots` is a folder that root prepared with `files_of_root`; None when nobody could."""
    token = uuid.uuid4().hex
    secret = f"secret-{token}"
    numbers = NUMBERS[os.uname().machine]
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="attack-bait-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        (folder / "secret").write_text(secret)
        (folder / "secret").chmod(0o644)
        (folder / "shared").mkdir()
        (folder / "shared").chmod(0o777)
        granted = tempfile.mkdtemp(prefix="attack-granted-", dir="/var/tmp")
        stack.callback(shutil.rmtree, granted)
        os.environ[SECRET_VARIABLE] = secret
        victim = stack.enter_context(subprocess.Popen(["sleep", f"1000.{int(token[:12], 16)}"]))
        stack.callback(victim.kill)
        ports = stack.enter_context(_listeners(folder, token))
        yield {
            **_AMOUNTS,
            **ports,
            "secret": secret,
            "environment_secret": secret,
            "folder": str(folder),
            "folders": [str(folder), *([roots] if roots else [])],
            "secret_file": str(folder / "secret"),
            "socket_file": str(folder / "socket"),
            "granted_folder": granted,
            "writable_folder": str(folder / "shared"),
            "suid": f"{roots}/id",
            "root_only": f"{roots}/root-only",
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "victim": victim.pid,
            "victim_token": victim.args[1],  # type: ignore[index]
            "host_name": os.uname().nodename,
            "numbers": {name: numbers[name] for name in _CALLS},
            "shared_key": stack.enter_context(_shared_memory(secret)),
            "queue": stack.enter_context(_message_queue(token)),
        }


@contextmanager
def files_of_root() -> Iterator[str | None]:
    """Make a program that runs as root and a file that root alone may read; None for who is not root."""
    if os.geteuid() != 0:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="attack-root-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        shutil.copyfile("/usr/bin/id", folder / "id")
        (folder / "id").chmod(0o4755)
        (folder / "root-only").write_text("for root alone")
        (folder / "root-only").chmod(0o600)
        yield str(folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _listeners(folder: Path, token: str) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        tcp4 = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        # A machine may have no IPv6; then IPv4 alone is to be found.
        family, address = (socket.AF_INET6, "::1") if _has_ipv6() else (socket.AF_INET, "127.0.0.1")
        tcp6 = stack.enter_context(socket.create_server((address, 0), family=family))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        abstract, named = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        abstract.bind(f"\0{token}")
        named.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        stop_read, stop_write = os.pipe()
        stack.callback(os.close, stop_read)
        for listener in (abstract, named):
            listener.listen()
        for each in (tcp4, tcp6, udp, abstract, named, stop_read):
            selector.register(each, selectors.EVENT_READ)

        def serve() -> None:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is udp:
                        udp.sendto(b"host", udp.recvfrom(100)[1])
                    elif isinstance(key.fileobj, socket.socket):
                        with key.fileobj.accept()[0] as client:
                            client.sendall(b"host")
                    else:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield {
                "tcp4": tcp4.getsockname()[1],
                "tcp6": tcp6.getsockname()[1],
                "udp": udp.getsockname()[1],
                "abstract": token,
            }
        finally:
            os.close(stop_write)
            thread.join()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextmanager
def _shared_memory(secret: str) -> Iterator[int]:
    key = uuid.uuid4().int % (1 << 30) + 1
    number = _libc.shmget(key, 4096, _IPC_CREAT | 0o666)
    assert number >= 0, os.strerror(ctypes.get_errno())
    try:
        _libc.shmat.restype = ctypes.c_void_p
        address = _libc.shmat(number, None, 0)
        ctypes.memmove(address, secret.encode() + b"\0", len(secret) + 1)
        _libc.shmdt(ctypes.c_void_p(address))
        yield key
    finally:
        _libc.shmctl(number, _IPC_RMID, None)


@contextmanager
def _message_queue(token: str) -> Iterator[str]:
    name = f"/attack-{token}"
    before = os.umask(0)
    queue = _libc.mq_open(name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    os.umask(before)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    try:
        yield name
    finally:
        os.close(queue)
        _libc.mq_unlink(name.encode())
