"""The launcher: a small single-threaded process that starts bwrap for the server and reaps every process tree.

Run as `python -I -S launcher.py SOCKET DIRECTORY` by LauncherLink; it imports the standard library only. A small
process forks in the same time however big the server is, and the thread that forks never ends, which
PR_SET_PDEATHSIG needs (prctl(2)). The server and the launcher speak packets over an AF_UNIX SOCK_SEQPACKET socket.

A bwrap that dies leaves its sandbox's pid 1 to the launcher, which is a child subreaper. A job is answered only
when bwrap and that pid 1 are reaped; a pid namespace whose init was reaped is empty (pid_namespaces(7)), so then the
whole tree is gone. Signals go by number only to processes that this process has not reaped yet.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
from dataclasses import dataclass, field

OP_RUN, OP_TERMINATE, OP_KILL = b"R", b"T", b"K"

COMMAND = struct.Struct("=cQ")
"""Every packet to the launcher: operation, job."""
RUN = struct.Struct("=qqB")
"""Follows COMMAND for OP_RUN: uid and gid of the job (one number; -1 keeps the launcher's), processes allowed inside
(-1: no limit set inside), number of LIMITs that follow; then bwrap's path and the command, NUL separated.
Four descriptors come along: stdin, stdout, stderr, bwrap's options."""
LIMIT = struct.Struct("=iQQ")
"""Resource (setrlimit(2)), soft limit, hard limit."""
ANSWER = struct.Struct("=QiBddq")
"""From the launcher: job, wait status of bwrap (-1: it could not be started), FLAG_*, user and system CPU seconds,
largest resident set in KiB (-1 unknown); then a text, empty unless the start failed."""

FLAG_EXECUTED = 1
"""bwrap reported an exit code of the command, so the command was executed."""

STATUS_NOT_STARTED = -1
MAX_PACKET_BYTES = 1 << 19

_OPTIONS_FD, _STATUS_FD, _BLOCK_FD, _FIRST_UNUSED_FD = 3, 4, 5, 6
_RESERVED_BELOW = 10
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_SYS_CLOSE_RANGE = 436
_OOM_SCORE_ADJ = b"900"
_POLL_PAYLOAD_SECONDS = 0.002
_SHUTDOWN_SECONDS = 10

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Job:
    """One bwrap and what is left of its tree. `outer` is bwrap; `init` the sandbox's pid 1, once known."""

    number: int
    outer: int
    status_fd: int
    block_fd: int
    processes_inside: int
    status_text: bytes = b""
    init: int = 0
    wait_status: int | None = None
    waiting_for: set[int] = field(default_factory=set)
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_kib: int = -1
    terminate_wanted: bool = False


class Launcher:
    """The loop. Nothing in it blocks, so that no job can hold up another."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._jobs: dict[int, Job] = {}
        self._by_outer: dict[int, Job] = {}
        self._unsent: list[bytes] = []
        self._blocked: dict[int, Job] = {}
        self._reaped_early: dict[int, resource.struct_rusage] = {}
        self._poll = select.epoll()
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake = wake_read
        self._pid = os.getpid()
        self._poll.register(channel.fileno(), select.EPOLLIN)
        self._poll.register(wake_read, select.EPOLLIN)

    def serve(self) -> None:
        """Work until the server closes its end of the channel."""
        while True:
            wanted = any(job.terminate_wanted for job in self._jobs.values())
            for descriptor, _ in self._poll.poll(_POLL_PAYLOAD_SECONDS if wanted else -1):
                if descriptor == self._wake:
                    self._drain_wake()
                elif descriptor == self._channel.fileno():
                    self._flush()
                    if not self._receive():
                        return
                else:
                    self._unblock(descriptor)
            self._reap()
            if wanted:
                for job in self._jobs.values():
                    if job.terminate_wanted:
                        self._terminate(job)

    def end_everything(self) -> None:
        """Kill and reap every process, in bounded time."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SHUTDOWN_SECONDS)
        while True:
            for pid in children():
                _send_signal(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                return

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake, 512)
        except BlockingIOError:
            pass

    def _receive(self) -> bool:
        """Take every packet that waits; False when the server is gone."""
        while True:
            try:
                packet, descriptors = _receive_packet(self._channel)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not packet:
                return False
            operation, number = COMMAND.unpack_from(packet)
            if operation == OP_RUN:
                try:
                    self._start(number, packet, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
            elif (job := self._jobs.get(number)) is not None:
                if operation == OP_KILL:
                    self._kill(job)
                else:
                    self._terminate(job)

    def _start(self, number: int, packet: bytes, descriptors: list[int]) -> None:
        uid, processes_inside, limit_count = RUN.unpack_from(packet, COMMAND.size)
        offset = COMMAND.size + RUN.size
        limits = [LIMIT.unpack_from(packet, offset + LIMIT.size * index) for index in range(limit_count)]
        bwrap, *command = packet[offset + LIMIT.size * limit_count :].split(b"\0")
        argv = [b"bwrap", b"--args", b"%d" % _OPTIONS_FD, b"--json-status-fd", b"%d" % _STATUS_FD]
        passed = list(descriptors)
        opened: list[int] = []
        try:
            status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            opened += [status_read, status_write]
            passed.append(status_write)
            block_write = -1
            if processes_inside >= 0:
                block_read, block_write = os.pipe2(os.O_CLOEXEC)
                opened += [block_read, block_write]
                passed.append(block_read)
                argv += [b"--block-fd", b"%d" % _BLOCK_FD]
            argv += [b"--", *command]
            pid = os.fork()
            if pid == 0:
                self._become(bwrap, argv, passed, uid, limits)
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            self._answer_failure(number, f"cannot start a process: {error.strerror}")
            return
        os.close(status_write)
        job = Job(number, pid, status_read, block_write, processes_inside)
        self._jobs[number] = self._by_outer[pid] = job
        if block_write >= 0:
            os.close(passed[-1])
            self._blocked[status_read] = job
            self._poll.register(status_read, select.EPOLLIN)

    def _become(
        self, bwrap: bytes, argv: list[bytes], passed: list[int], uid: int, limits: list[tuple[int, int, int]]
    ) -> None:
        """In the child: take the job's identity and limits, then execute bwrap. Never returns."""
        try:
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
                score.write(_OOM_SCORE_ADJ)
            os.umask(0o077)
            for target, descriptor in enumerate(passed):
                os.dup2(descriptor, target)
            _libc.syscall(_SYS_CLOSE_RANGE, len(passed), ctypes.c_uint(0xFFFFFFFF), 0)
            if uid >= 0:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            # Changing ids clears it (prctl(2)); the parent may have died before it was set.
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._pid:
                os._exit(1)
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)
            for which, soft, hard in limits:
                resource.setrlimit(which, (_native(soft), _native(hard)))
            os.execve(bwrap, argv, {})  # noqa: S606 - executing without a shell is the point
        except BaseException as error:  # noqa: BLE001 - a forked child must not run on into the parent's loop
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            os.write(2, b"bwrap: cannot be started: %s\n" % str(reason).encode())
        finally:
            os._exit(1)

    def _unblock(self, status_fd: int) -> None:
        """Bound the processes inside, once pid 1 exists, and let bwrap go on to the command.

        Set before bwrap, the limit would count every process of the server's user; inside the new user namespace it
        counts the sandbox's own.
        """
        job = self._blocked.get(status_fd)
        if job is None:
            return
        self._read_status(job)
        if not job.init:
            return
        limit = job.processes_inside
        try:
            if self._is_init(job):
                resource.prlimit(job.init, resource.RLIMIT_NPROC, (limit, limit))
                os.write(job.block_fd, b"\0")
        except OSError:
            # It died, or the limit cannot be set: never run without it.
            self._kill(job)
        self._close_block(job)

    def _close_block(self, job: Job) -> None:
        if job.block_fd >= 0:
            os.close(job.block_fd)
            job.block_fd = -1
            self._poll.unregister(job.status_fd)
            del self._blocked[job.status_fd]

    def _read_status(self, job: Job) -> None:
        try:
            while data := os.read(job.status_fd, 4096):
                job.status_text += data
        except BlockingIOError:
            pass
        if not job.init:
            job.init = _number_after(job.status_text, b'"child-pid":')

    def _terminate(self, job: Job) -> None:
        """SIGTERM to the payload's process group; tried again shortly while there is no payload yet."""
        job.terminate_wanted = False
        if job.wait_status is not None:
            return
        self._read_status(job)
        if not job.init:
            job.terminate_wanted = True
            return
        if not self._is_init(job):
            return
        payload = next(iter(children(job.init)), 0)
        if not payload:
            job.terminate_wanted = True
            return
        try:
            # bwrap's pid 1 is in the same group and, as an init without a handler, ignores it (pid_namespaces(7)).
            os.killpg(os.getpgid(payload), signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            job.terminate_wanted = True

    def _is_init(self, job: Job) -> bool:
        return _parent_of(job.init) == job.outer

    def _kill(self, job: Job) -> None:
        if job.wait_status is None:
            _send_signal(job.outer, signal.SIGKILL)
        for pid in job.waiting_for:
            _send_signal(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self._by_outer.pop(pid, None)
            if job is not None:
                self._outer_ended(job, status, usage)
            else:
                self._orphan_ended(pid, usage)

    def _outer_ended(self, job: Job, status: int, usage: resource.struct_rusage) -> None:
        job.wait_status = status
        _count(job, usage)
        self._read_status(job)
        if job.init:
            if (early := self._reaped_early.pop(job.init, None)) is not None:
                _count(job, early)
                job.max_rss_kib = early.ru_maxrss
            elif job.init in self._by_outer or not _is_child(job.init):
                # bwrap reaped its pid 1 itself: the peak is in its own record.
                job.max_rss_kib = usage.ru_maxrss
            else:
                job.waiting_for.add(job.init)
        else:
            # bwrap died between its fork and its report: whatever is here and was not forked here was its child.
            known = {pid for other in self._jobs.values() for pid in other.waiting_for}
            job.waiting_for.update(pid for pid in children() if pid not in self._by_outer and pid not in known)
        self._kill(job)
        self._finish_if_over(job)

    def _orphan_ended(self, pid: int, usage: resource.struct_rusage) -> None:
        if not any(pid in job.waiting_for for job in self._jobs.values()):
            # An orphan may be reaped just before its bwrap, which is still exiting.
            self._reaped_early[pid] = usage
        for job in list(self._jobs.values()):
            if pid in job.waiting_for:
                job.waiting_for.discard(pid)
                _count(job, usage)
                job.max_rss_kib = max(job.max_rss_kib, usage.ru_maxrss)
                self._finish_if_over(job)

    def _finish_if_over(self, job: Job) -> None:
        if job.wait_status is None or job.waiting_for:
            return
        self._close_block(job)
        os.close(job.status_fd)
        del self._jobs[job.number]
        if not self._jobs:
            self._reaped_early.clear()
        flags = FLAG_EXECUTED if b'"exit-code":' in job.status_text else 0
        answer = ANSWER.pack(job.number, job.wait_status, flags, job.user_seconds, job.system_seconds, job.max_rss_kib)
        self._send(answer)

    def _answer_failure(self, number: int, text: str) -> None:
        self._send(ANSWER.pack(number, STATUS_NOT_STARTED, 0, 0.0, 0.0, -1) + text.encode())

    def _send(self, answer: bytes) -> None:
        self._unsent.append(answer)
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._channel.send(self._unsent[0])
            except BlockingIOError:
                self._poll.modify(self._channel.fileno(), select.EPOLLIN | select.EPOLLOUT)
                return
            except OSError:
                self._unsent.clear()
                return
            del self._unsent[0]
            if not self._unsent:
                self._poll.modify(self._channel.fileno(), select.EPOLLIN)


def children(pid: int = 0) -> list[int]:
    """Return the pids of a process's children; its own without an argument. One thread is all such a process has."""
    pid = pid or os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as listing:
            return [int(child) for child in listing.readall().split()]
    except FileNotFoundError:
        pass
    except OSError:
        return []
    # No such process, or a kernel without CONFIG_PROC_CHILDREN.
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(int(name)) == pid]


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            text = stat.read(1024)
    except OSError:
        return 0
    # The name in brackets may hold anything, brackets too (proc_pid_stat(5)).
    return int(text[text.rindex(b")") + 2 :].split()[1])


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _count(job: Job, usage: resource.struct_rusage) -> None:
    job.user_seconds += usage.ru_utime
    job.system_seconds += usage.ru_stime


def _number_after(text: bytes, key: bytes) -> int:
    _, found, rest = text.partition(key)
    digits = rest.split(b",")[0].split(b"}")[0].strip()
    return int(digits) if found and digits.isdigit() and b"\n" in rest else 0


def _native(limit: int) -> int:
    return resource.RLIM_INFINITY if limit >= 1 << 63 else limit


def _send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _receive_packet(channel: socket.socket) -> tuple[bytes, list[int]]:
    packet, ancillary, flags, _ = channel.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"={len(data) // 4}i", data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError(errno.EMSGSIZE, "a packet was cut off")
    return packet, descriptors


def _reset_signals() -> None:
    """Default every signal, then handle what must not end the launcher: exec gives handled ones back their default."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:  # kept by the C library for itself
            continue
    kept = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
    for number in kept:
        signal.signal(number, lambda *_: None)


def _remove(directory: str) -> None:
    for folder, folders, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            path = os.path.join(folder, name)
            (os.unlink if os.path.islink(path) else os.rmdir)(path)
    os.rmdir(directory)


def main(socket_number: int, directory: str) -> None:
    """Serve on an inherited socket until its other end is closed, then remove `directory` (empty text: none)."""
    # What a job's child puts at 0 to 5 must never overwrite what it still has to move there.
    channel = socket.socket(fileno=fcntl.fcntl(socket_number, fcntl.F_DUPFD_CLOEXEC, _RESERVED_BELOW))
    os.close(socket_number)
    spare = os.open("/dev/null", os.O_RDWR)
    while spare < _RESERVED_BELOW:
        spare = os.dup(spare)
    channel.setblocking(False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _reset_signals()
    launcher = Launcher(channel)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        launcher.serve()
    finally:
        launcher.end_everything()
    # After a failure the server goes on to use the directory with another launcher.
    if directory:
        _remove(directory)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
