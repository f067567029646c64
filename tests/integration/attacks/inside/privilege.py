"""Attacks for more rights: capabilities, other users' rights, kernel calls that lead out of the namespaces."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import stat
import subprocess  # noqa: TID251 - the attacker may

from tests.integration.attacks.inside.verdicts import Bait, Blocked, attack, checked, first, libc, reached, syscall

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_PTRACE_TRACEME = 0


def _status(name: str, pid: object = "self") -> str:
    with open(f"/proc/{pid}/status") as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


@attack
def capabilities(bait: Bait) -> str:
    sets = {name: _status(name) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    if not any(int(value, 16) for value in sets.values()):
        raise Blocked("every set is empty")
    return str(sets)


@attack
def new_privileges(bait: Bait) -> str:
    if _status("NoNewPrivs") == "1":
        raise Blocked("no_new_privs is set")
    return "no_new_privs is not set"


@attack
def suid_program(bait: Bait) -> str:
    done = subprocess.run([bait["suid"], "-u"], capture_output=True, text=True, check=False)
    if done.stdout.strip() != "0":
        raise Blocked(f"it runs as {done.stdout.strip() or done.stderr}")
    return "it runs as uid 0"


@attack
def file_of_root(bait: Bait) -> str:
    with open(bait["root_only"]) as opened:
        return opened.read()


@attack
def core_pattern(bait: Bait) -> str:
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
    return "a handler of crashes that runs on the host could be set"


@attack
def nested_user_namespace(bait: Bait) -> str:
    checked(libc.unshare(_NEW_USER))
    return f"capabilities in a new one: {_status('CapEff')}"


@attack
def mount(bait: Bait) -> str:
    # Where a user namespace of one's own can be had, it brings the capability along.
    if libc.unshare(_NEW_USER | _NEW_MOUNTS) == -1:
        checked(libc.unshare(_NEW_MOUNTS))
    checked(libc.mount(b"none", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))
    return "a file system is mounted"


@attack
def mount_by_descriptor(bait: Bait) -> str:
    return f"open_tree {reached(bait['numbers']['open_tree'], -100, ctypes.c_char_p(b'/'), 0)}"


@attack
def setns(bait: Bait) -> str:
    return reached(bait["numbers"]["setns"], -1, 0)


@attack
def clone3(bait: Bait) -> str:
    return reached(bait["numbers"]["clone3"], 0, 0)


@attack
def io_uring(bait: Bait) -> str:
    return reached(bait["numbers"]["io_uring_setup"], 1, 0)


@attack
def unlisted_call(bait: Bait) -> str:
    return reached(bait["numbers"]["name_to_handle_at"], -1, 0, 0, 0, 0)


@attack
def device_node(bait: Bait) -> str:
    path = f"/tmp/device-{os.getpid()}"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.unlink(path)
    return "a device node was made"


@attack
def trace(bait: Bait) -> str:
    syscall(bait["numbers"]["ptrace"], _PTRACE_TRACEME, 0, 0, 0)
    return "this process may be traced"


@attack
def foreign_memory(bait: Bait) -> str:
    """Of a child, which a kernel that protects all others allows too."""
    secret = ctypes.create_string_buffer(b"secret")
    child = os.fork()
    if child == 0:
        signal.pause()
    copy = ctypes.create_string_buffer(6)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(copy), 6)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(secret), 6)
    syscall(bait["numbers"]["process_vm_readv"], child, local, 1, remote, 1, 0)
    return f"read {copy.raw!r} from another process"


@attack
def call_of_32_bits(bait: Bait) -> str:
    """getpid(2) by `int 0x80`, whose numbers mean other calls."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return f"getpid gave {ctypes.CFUNCTYPE(ctypes.c_int)(address)()}"


@attack
def call_of_x32(bait: Bait) -> str:
    try:
        return f"getpid gave {syscall(0x40000000 | 39)}"
    except OSError as error:
        return f"the kernel looked at it: {error.strerror}"


@attack
def typing_into_a_terminal(bait: Bait) -> str:
    """TIOCSTI on a terminal of one's own, also with bits that the kernel ignores."""
    slave = os.openpty()[1]
    checked(libc.ioctl(slave, 0x540E, 0))
    typed = ctypes.c_char(b"x")
    return first(
        {
            "TIOCSTI": lambda: _ioctl(bait, slave, 0x5412, typed),
            "TIOCSTI with high bits": lambda: _ioctl(bait, slave, 0x5412 | 1 << 32, typed),
            "TIOCLINUX": lambda: _ioctl(bait, slave, 0x541C, typed),
            "TIOCSETD": lambda: _ioctl(bait, slave, 0x5423, ctypes.c_int(0)),
        }
    )


def _ioctl(bait: Bait, descriptor: int, request: int, argument: object) -> str:
    return reached(bait["numbers"]["ioctl"], descriptor, request, ctypes.byref(argument))  # type: ignore[arg-type]


@attack
def netlink_socket(bait: Bait) -> str:
    return reached(bait["numbers"]["socket"], 16, 3, 0)


@attack
def raw_socket(bait: Bait) -> str:
    return first(
        {
            "raw": lambda: syscall(bait["numbers"]["socket"], 2, 3, 1),
            "packet": lambda: syscall(bait["numbers"]["socket"], 17, 3, 0),
        }
    )


@attack
def vsock_socket(bait: Bait) -> str:
    """A way from a virtual machine to its host past every network."""
    return f"socket {syscall(bait['numbers']['socket'], 40, 1, 0)}"


@attack
def keyring(bait: Bait) -> str:
    key = [ctypes.c_char_p(b"user"), ctypes.c_char_p(b"attack"), ctypes.c_char_p(b"x")]
    return f"key {syscall(bait['numbers']['add_key'], *key, 1, -2)}"


@attack
def program_of_pid_1(bait: Bait) -> str:
    """On an unprivileged server it may be the server's own file, which a read-only view does not cover."""
    mode = stat.S_IMODE(os.stat("/proc/1/exe").st_mode)
    try:
        os.chmod("/proc/1/exe", mode)
    except OSError as error:
        return f"it can be read, as {os.readlink('/proc/1/exe')}, not changed: {error.strerror}"
    return f"the mode of {os.readlink('/proc/1/exe')} on the host can be set"


@attack
def memory_of_pid_1(bait: Bait) -> str:
    """Pid 1 taken over could refuse the signal that ends it with its parent."""
    os.close(os.open("/proc/1/mem", os.O_RDWR))
    return "it can be written"


@attack
def signal_to_the_host(bait: Bait) -> str:
    """To processes of the host by number, the server and another execution among them."""
    os.kill(bait["victim"], 0)
    return f"process {bait['victim']} of the host can be signalled"
