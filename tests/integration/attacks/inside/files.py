"""Attacks on files: the host's by every way that leads to a file, and space that was not given."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import Callable
from functools import partial

from tests.integration.attacks.inside.verdicts import Bait, Blocked, attack, first

_MIB = 1 << 20
_AT_LEAST_MIB = 3
_SHARED_MEMORY_MIB = 66


def _read(path: str, bait: Bait) -> str:
    with open(path) as opened:
        text = opened.read()
    if bait["secret"] not in text:
        raise Blocked("there is a file, not the host's")
    return text


@attack
def secret_by_path(bait: Bait) -> str:
    path = bait["secret_file"]
    climbed = "/workspace/" + "../" * 40 + path.lstrip("/")
    return first({"path": lambda: _read(path, bait), "path with ..": lambda: _read(climbed, bait)})


@attack
def secret_by_symbolic_link(bait: Bait) -> str:
    with contextlib.suppress(FileExistsError):
        os.symlink(bait["secret_file"], "/workspace/link")
        os.symlink(os.path.dirname(bait["secret_file"]), "/workspace/folder")
    inside = f"/workspace/folder/{os.path.basename(bait['secret_file'])}"
    return first({"link": lambda: _read("/workspace/link", bait), "folder": lambda: _read(inside, bait)})


@attack
def secret_by_hard_link(bait: Bait) -> str:
    """A link made elsewhere on the same file system would be the file itself, so making one is what must fail."""
    try:
        os.link(bait["secret_file"], "/workspace/hard")
    except FileNotFoundError as error:
        raise Blocked("there is nothing to link to") from error
    except OSError as error:
        return f"the file is there to be linked: {error.strerror}"
    return _read("/workspace/hard", bait)


@attack
def secret_by_magic_link(bait: Bait) -> str:
    path = bait["secret_file"]
    places = ("/proc/self/root", "/proc/self/cwd/..", "/proc/1/root", "/proc/1/cwd/..", f"/proc/{os.getppid()}/root")
    tries: dict[str, Callable[[], object]] = {}
    for place in places:
        tries[place] = partial(_read, place + path, bait)
    return first(tries)


@attack
def inherited_descriptors(bait: Bait) -> str:
    mine = {0, 1, 2}
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    # The pipe that the verdict goes through is the attacker's own.
    found = {int(name): _target(int(name)) for name in os.listdir(listing)}
    foreign = {n: to for n, to in found.items() if n not in mine and n != listing and not to.startswith("pipe:")}
    if not foreign:
        raise Blocked("only its own three")
    return str(foreign)


def _target(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return "pipe: closed meanwhile"


@attack
def socket_of_the_host(bait: Bait) -> str:
    """As a container engine, a message bus and a database have them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(bait["socket_file"])
        return f"it answered {client.recv(100)!r}"


@attack
def write_outside_the_workspace(bait: Bait) -> str:
    tries: dict[str, Callable[[], object]] = {}
    for place in ("/", "/dev", bait["writable_folder"], *(() if bait["gently"] else ("/usr", "/etc", "/proc", "/bin"))):
        tries[place] = partial(_touch, os.path.join(place, f"attack-{os.getpid()}"))
    return first(tries)


def _touch(path: str) -> str:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    return f"{path} was made"


@attack
def space_in_memory_file_systems(bait: Bait) -> str:
    wanted = {"/workspace": _AT_LEAST_MIB, "/tmp": _AT_LEAST_MIB, "/dev/shm": _SHARED_MEMORY_MIB}
    tries: dict[str, Callable[[], object]] = {}
    for place, mebibytes in wanted.items():
        tries[place] = partial(_fill, f"{place}/big", mebibytes)
    return first(tries)


def _fill(path: str, mebibytes: int) -> str:
    block = b"\0" * _MIB
    try:
        with open(path, "wb", buffering=0) as file:
            written = sum(file.write(block) for _ in range(mebibytes))
    finally:
        os.unlink(path)
    if written < mebibytes * _MIB:
        raise Blocked(f"full after {written} bytes")
    return f"{written} bytes were written"


@attack
def lease_on_a_file(bait: Bait) -> str:
    """Whoever opens a file that its owner has a lease on waits: in a granted folder the host, in /etc the next one."""
    path = f"/tmp/lease-{os.getpid()}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return f"lease {fcntl.fcntl(descriptor, fcntl.F_GETLEASE)}"
    finally:
        os.unlink(path)


@attack
def file_over_its_size(bait: Bait) -> str:
    """Written, or grown without being written (a sparse file)."""
    return first({"sparse": lambda: _grow("/workspace/sparse"), "written": lambda: _fill("/workspace/long", 2)})


def _grow(path: str) -> str:
    with open(path, "wb") as file:
        file.truncate(10 << 30)
    return "10 GiB long"


@attack
def many_files(bait: Bait) -> str:
    """Empty ones take no space of a file system's size, but memory of the kernel."""
    for number in range(bait["files"]):
        os.close(os.open(f"/workspace/{number}", os.O_WRONLY | os.O_CREAT, 0o600))
    return f"{bait['files']} files"


@attack
def core_file(bait: Bait) -> str:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (_MIB, _MIB))
    except ValueError as error:
        raise Blocked(str(error)) from None
    return "cores may be written, by the host's handler too"


@attack
def locked_memory(bait: Bait) -> str:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if 0 <= limit <= 64 * 1024:
        raise Blocked(f"at most {limit} bytes")
    return f"up to {limit} bytes may be kept from being swapped"
