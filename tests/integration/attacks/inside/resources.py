"""Attacks on what the machine has to share out. Each stops by itself at a small number, whatever holds it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import threading
import time

from tests.integration.attacks.inside.verdicts import Bait, Blocked, attack, checked, first, libc, syscall

_MIB = 1 << 20
_MFD_HUGETLB, _MAP_HUGETLB = 4, 0x40000


def _processes(count: int, memory: int = 0, *, shared: bool = False) -> str:
    """Have `count` children that each hold so many bytes at the same time. Raises OSError, Blocked."""
    pids, ready = [], 0
    read, write = os.pipe()
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                held = _take(memory, shared=shared)
                os.write(write, b"1")
                # Held open, the end of the others would not be seen.
                os.close(write)
                signal.pause()
                del held
                os._exit(0)
            pids.append(pid)
        os.close(write)
        while ready < count and os.read(read, 1):
            ready += 1
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
    if ready < count:
        raise Blocked(f"{ready} of {count} came so far")
    return f"{count} processes at once"


def _take(size: int, *, shared: bool) -> object:
    if not shared:
        return b"x" * size
    descriptor = os.memfd_create("bomb")
    for _ in range(size // _MIB):
        os.write(descriptor, b"x" * _MIB)
    return descriptor


@attack
def huge_pages(bait: Bait) -> str:
    """No memory cgroup counts them. Asking for none takes none: what matters is who answers, the kernel or the wall."""

    def mapped() -> str:
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
        ctypes.set_errno(0)
        libc.mmap(None, 0, mmap.PROT_READ, kind, -1, 0)
        if ctypes.get_errno() == errno.ENOMEM:
            raise Blocked("there are none")
        return f"the kernel looked at it: {os.strerror(ctypes.get_errno())}"

    return first({"mapped": mapped, "in a file": lambda: checked(libc.memfd_create(b"huge", _MFD_HUGETLB))})


@attack
def fork_bomb(bait: Bait) -> str:
    return _processes(bait["processes"])


@attack
def thread_bomb(bait: Bait) -> str:
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(bait["processes"])]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise Blocked(str(error)) from None
    finally:
        end.set()
    return f"{len(threads)} threads at once"


@attack
def memory_bomb(bait: Bait) -> str:
    """One process."""
    return f"{len(bytearray(bait['bomb_mib'] * _MIB)) / _MIB} MiB"


@attack
def memory_bomb_of_many(bait: Bait) -> str:
    return _processes(4, bait["bomb_mib"] * _MIB // 4)


@attack
def memory_file_bomb(bait: Bait) -> str:
    """What is written to a memfd is in no process's memory."""
    return _processes(4, bait["bomb_mib"] * _MIB // 4, shared=True)


@attack
def descriptors(bait: Bait) -> str:
    return f"{len([os.dup(0) for _ in range(bait['descriptors'])])} descriptors"


@attack
def pending_signals(bait: Bait) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    for _ in range(bait["signals"]):
        checked(libc.sigqueue(os.getpid(), signal.SIGRTMIN, None))
    return f"{bait['signals']} queued signals"


@attack
def asynchronous_io(bait: Bait) -> str:
    """Its contexts are counted for the whole machine: who takes them all leaves none for a database beside it."""
    context = ctypes.c_ulong(0)
    return f"{syscall(bait['numbers']['io_setup'], 16, ctypes.byref(context))}: contexts can be had"


@attack
def cpu_hog(bait: Bait) -> str:
    """Of one process, which ignores the polite signal; its bound is in whole seconds."""
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    signal.alarm(100)  # others may keep the machine busy
    while time.process_time() < bait["cpu_seconds"]:
        pass
    return f"{time.process_time():.1f} s of CPU time"


@attack
def turn_before_the_server(bait: Bait) -> str:
    """Of many processes that keep every core busy each has the next turn as soon as the server, unless it is nicer."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice < min(19, bait["nice"] + 10):
        return f"it is nice {nice}"
    os.setpriority(os.PRIO_PROCESS, 0, nice - 1)
    return "it can be less nice"


@attack
def longer_limits(bait: Bait) -> str:
    """A limit that its own process can lift is none."""
    for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_NPROC"):
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard == resource.RLIM_INFINITY:
            return f"{name} is not set"
        try:
            resource.setrlimit(which, (hard, hard + 1))
        except (OSError, ValueError):
            continue
        return f"{name} can be lifted"
    raise Blocked("each stays")
