"""The launcher: a small single-threaded process that starts bwrap for the server and reaps every process tree.

A small process forks in the same time however big the server is, and the thread that forks never ends, which
PR_SET_PDEATHSIG needs (prctl(2)).

A bwrap that dies leaves its sandbox's pid 1 to the launcher, which is a child subreaper. A job is answered only
when bwrap and that pid 1 are reaped; a pid namespace whose init was reaped is empty (pid_namespaces(7)), so then the
whole tree is gone. Signals go by number only to processes that this process has not reaped yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import resource
import select
import signal
import socket

from ..hardening.cgroup_leaf import Leaf  # noqa: TID252 - see child/__init__.py
from .answers import Answers
from .cpu_watch import CpuWatch
from .gate import Gate
from .inside import Preparation
from .job import BLOCK_FD, FILTER_FD, STATUS_FD, Job, Settings, become, complain, settle
from .kernel import PR_SET_CHILD_SUBREAPER, children, is_child, prctl, reset_signals, send_signal
from .leaves import Leaves, branch_of, limit
from .ready_children import ReadyChildren
from .runtime_end import end_directory
from .wire import (
    ANSWER,
    COMMAND,
    FLAG_EXECUTED,
    JOB_DESCRIPTORS,
    OP_KILL,
    OP_RUN,
    RunRequest,
    receive_packet,
)

_RESERVED_BELOW = 10
_POLL_PAYLOAD_SECONDS = 0.002
_SHUTDOWN_SECONDS = 10
_QUIET_SECONDS, _SHORTLY_SECONDS = 0.025, 0.002
"""How long nothing happens before a child is made ready, so that it takes nothing from a start: making one slows the
forks and exits of others by a few milliseconds. Shortly when none is left, as the next start would wait longer."""
_MOST_DISCARDED = 64
"""Leaves that may wait for a quiet moment to be removed."""


class Launcher:
    """The loop. Nothing in it blocks, so that no job can hold up another."""

    def __init__(
        self, channel: socket.socket, filter_descriptor: int, leaves: Leaves, ready_children: int, settings: Settings
    ) -> None:
        self._channel = channel
        self._filter = f"/proc/self/fd/{filter_descriptor}"
        self._leaves = leaves
        self._settings = settings
        self._jobs: dict[int, Job] = {}
        self._by_outer: dict[int, Job] = {}
        self._reaped_early: dict[int, resource.struct_rusage] = {}
        self._cpu = CpuWatch()
        self._poll = select.poll()  # epoll's watches are counted for each user, whose executions could take all
        self._gate = Gate(self._poll)
        self._answers = Answers(channel, self._poll)
        self._ready = ReadyChildren(ready_children, leaves, self._settings, self._poll)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake = wake_read
        self._poll.register(channel.fileno(), select.POLLIN)
        self._poll.register(wake_read, select.POLLIN)

    def serve(self) -> None:
        """Work until the server closes its end of the channel."""
        while True:
            wanted = any(job.terminate_wanted for job in self._jobs.values())
            has_chores = not self._ready.attaching and (self._ready.lacking or self._leaves.discarded)
            quiet = _QUIET_SECONDS if self._ready or not self._ready.lacking else _SHORTLY_SECONDS
            patience = _POLL_PAYLOAD_SECONDS if wanted else quiet if has_chores else -1
            seconds = self._cpu.sooner(patience)
            happened = self._poll.poll(None if seconds < 0 else math.ceil(seconds * 1000))
            if has_chores and not happened:
                self._leaves.tidy()
                if self._ready.lacking:
                    self._ready.make()
            for descriptor, _ in happened:
                if descriptor == self._wake:
                    self._drain_wake()
                elif descriptor == self._channel.fileno():
                    self._answers.flush()
                    if not self._receive():
                        return
                elif not self._ready.attached(descriptor):
                    self._gate.happened(descriptor)
            self._reap()
            for number in self._cpu.over():
                self._jobs[number].kill()
            if wanted:
                for job in self._jobs.values():
                    if job.terminate_wanted:
                        job.terminate()

    def end_everything(self) -> None:
        """Kill and reap every process; ends this one too when that takes more than 10 s."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SHUTDOWN_SECONDS)
        while True:
            for pid in children():
                send_signal(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                # What is looked through after a killed server has a bound of its own (`grant_check.MAX_SECONDS`).
                signal.alarm(0)
                return

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)

    def _receive(self) -> bool:
        """Take every packet that waits; False when the server is gone."""
        while True:
            try:
                packet, descriptors = receive_packet(self._channel)
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
                    job.kill()
                else:
                    job.terminate()

    def _start(self, number: int, packet: bytes, descriptors: list[int]) -> None:
        request = RunRequest.parse(packet)
        passed = descriptors[:JOB_DESCRIPTORS]
        preparation: Preparation | None = None
        opened: list[int] = []
        try:
            status_read, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            opened += [status_read, status_write]
            # Opened anew each time: bwrap reads to the end, and a position would be shared.
            opened.append(os.open(self._filter, os.O_RDONLY | os.O_CLOEXEC))
            passed += [status_write, opened[-1]]
            block_write = -1
            if request.proxy_port or request.inodes:
                report = os.dup(descriptors[-1]) if request.proxy_port else -1
                preparation = Preparation(request.uid, request.proxy_port, report, request.inodes)
            if request.processes_inside >= 0 or preparation is not None:
                block_read, block_write = os.pipe2(os.O_CLOEXEC)
                opened += [block_read, block_write]
                passed += [block_read, block_write]
            pid, leaf = self._give(request, packet, passed)
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            if preparation is not None:
                preparation.close()
            self._answers.failed(number, f"cannot start a process: {error.strerror}")
            return
        os.close(passed[STATUS_FD])
        os.close(passed[FILTER_FD])
        job = Job(number, pid, status_read, block_write, request.processes_inside, leaf, preparation=preparation)
        self._jobs[number] = self._by_outer[pid] = job
        if leaf is not None and request.tree_cpu_seconds >= 0:
            self._cpu.watch(number, leaf, request.tree_cpu_seconds)
        if block_write >= 0:
            os.close(passed[BLOCK_FD])
            self._gate.hold(job)

    def _give(self, request: RunRequest, packet: bytes, passed: list[int]) -> tuple[int, Leaf | None]:
        """Give a job to a child that waits, or to a new one. Raises OSError; then none has it."""
        usual = self._leaves.usual_do_for(request)
        if usual and (given := self._ready.give(request, packet, passed)) is not None:
            return given
        leaf = self._leaves.make(counting_cpu=not usual)
        try:
            limit(leaf, request)
            return self._fork(request, passed, leaf), leaf
        except OSError:
            self._leaves.discard(leaf)
            raise

    def _fork(self, request: RunRequest, passed: list[int], leaf: Leaf | None) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                settle(leaf, self._settings)
                become(request, passed, self._settings)
            except BaseException as error:  # noqa: BLE001 - a forked child must not run on into the loop
                os.dup2(passed[2], 2)
                complain(error)
            finally:
                os._exit(1)
        return pid

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
            elif (job := self._gate.helper_ended(pid, status)) is not None:
                self._finish_if_over(job)
            elif not self._ready.ended(pid):
                self._orphan_ended(pid, usage)

    def _outer_ended(self, job: Job, status: int, usage: resource.struct_rusage) -> None:
        job.wait_status = status
        job.count(usage)
        job.read_status()
        if job.init:
            if (early := self._reaped_early.pop(job.init, None)) is not None:
                job.count(early)
                job.max_rss_kib = early.ru_maxrss
            elif job.init in self._by_outer or not is_child(job.init):
                # bwrap reaped its pid 1 itself: the peak is in its own record.
                job.max_rss_kib = usage.ru_maxrss
            else:
                job.waiting_for.add(job.init)
        else:
            # bwrap died between its fork and its report: whatever is here and was not forked here was its child.
            known = {pid for other in self._jobs.values() for pid in other.waiting_for}
            known |= self._by_outer.keys() | self._gate.helpers | self._ready.pids
            job.waiting_for.update(pid for pid in children() if pid not in known)
            if job.leaf is not None:
                job.leaf.kill_at_once()
        for pid in (*job.waiting_for, *filter(None, [job.helper])):
            send_signal(pid, signal.SIGKILL)
        self._finish_if_over(job)

    def _orphan_ended(self, pid: int, usage: resource.struct_rusage) -> None:
        if not any(pid in job.waiting_for for job in self._jobs.values()):
            # An orphan may be reaped just before its bwrap, which is still exiting.
            self._reaped_early[pid] = usage
        for job in list(self._jobs.values()):
            if pid in job.waiting_for:
                job.waiting_for.discard(pid)
                job.count(usage)
                job.max_rss_kib = max(job.max_rss_kib, usage.ru_maxrss)
                self._finish_if_over(job)

    def _finish_if_over(self, job: Job) -> None:
        if not job.over or job.helper:
            return
        self._gate.forget(job)
        if job.preparation is not None:
            job.preparation.close()
        os.close(job.status_fd)
        del self._jobs[job.number]
        self._cpu.forget(job.number)
        if not self._jobs:
            self._reaped_early.clear()
        flags = FLAG_EXECUTED if job.executed else 0
        if job.failure:
            self._answers.failed(job.number, job.failure)
        else:
            self._answers.send(ANSWER.pack(job.number, job.wait_status, flags, *job.usage()))
        self._leaves.discard(job.leaf)
        if self._leaves.discarded > _MOST_DISCARDED:
            self._leaves.tidy()


def main(arguments: list[str]) -> None:
    """Serve on an inherited socket until its other end is closed, then remove a directory.

    Arguments: the socket's descriptor, the system call filter's, the directory, how many children to have ready, what
    a test has taken away, comma separated, and the server's cgroups as `leaves.branch_argument` writes them.
    """
    directory, ready_children = arguments[2], int(arguments[3])
    leaves = Leaves([branch_of(argument) for argument in arguments[5:]])
    # What a job's child puts at 0 to 6 must never overwrite what it still has to move there.
    socket_number, filter_number = (_moved_up(int(argument)) for argument in arguments[:2])
    channel = socket.socket(fileno=socket_number)
    spare = os.open("/dev/null", os.O_RDWR)
    while spare < _RESERVED_BELOW:
        spare = os.dup(spare)
    channel.setblocking(False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    reset_signals()
    settings = Settings.here(directory, frozenset(arguments[4].split(",")))
    launcher = Launcher(channel, filter_number, leaves, ready_children, settings)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        launcher.serve()
    finally:
        launcher.end_everything()
    # After a failure the server goes on to use the directories with another launcher.
    leaves.remove_all()
    end_directory(directory)


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _RESERVED_BELOW)
    os.close(descriptor)
    return moved
