"""The stub: starts one command for LocalRunner, applies its limits, and ends its whole tree.

The server sends one line of JSON over a socket, then single bytes, and gets one line of JSON back when the tree is
gone. On Linux the stub is a child subreaper, so that no daemon escapes it; elsewhere it ends the process group.
When the server vanishes the socket ends, and with it everything.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from .kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, children, close_from, prctl, reset_signals, send_signal
from .remove_tree import remove_tree

OP_TERMINATE, OP_KILL = b"T", b"K"
STAGE_DIRECTORY, STAGE_EXECUTE = "directory", "execute"

_LINUX = sys.platform == "linux"
_MAX_LINE_BYTES = 4 << 20
_NULL_FD, _RESERVED_BELOW = 3, 10


class Stub:
    """One command and its descendants."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._status: int | None = None
        self._orders = b""
        self._failure = -1
        self._failure_text = b""

    def run(self) -> None:
        """Take the request, run it to its end, answer."""
        request = self._request()
        self._failure, write = os.pipe()
        command = os.fork()
        if command == 0:
            _become(request, write)
        os.close(write)
        # Held here, the streams would never end.
        for descriptor in range(_NULL_FD):
            os.dup2(_NULL_FD, descriptor)
        self._supervise(command)
        self._end_tree(command)
        while self._started():
            continue
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = {
            "status": self._status,
            "failure": json.loads(self._failure_text) if self._failure_text else None,
            "user_seconds": usage.ru_utime,
            "system_seconds": usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * (1024 if _LINUX else 1),
        }
        try:
            self._channel.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            # The server is gone, and nobody else knows of the directory.
            remove_tree(request["folder"])

    def _request(self) -> dict[str, Any]:
        text = b""
        while b"\n" not in text:
            data = self._channel.recv(65536)
            if not data or len(text) > _MAX_LINE_BYTES:
                raise SystemExit(1)
            text += data
        line, _, self._orders = text.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request

    def _supervise(self, command: int) -> None:
        """Obey the server until the command has ended or is to end."""
        starting = True
        while not self._over(command) and OP_KILL not in self._orders:
            # Until it is executed the command has no group that could be signalled.
            if not starting and self._orders:
                _signal_group(command, signal.SIGTERM)
                self._orders = b""
            watched = [self._wake, self._channel.fileno(), *([self._failure] if starting else [])]
            ready, _, _ = select.select(watched, [], [])
            if self._wake in ready:
                os.read(self._wake, 512)
            if self._failure in ready:
                starting = self._started()
            if self._channel.fileno() in ready:
                self._orders += self._receive()

    def _started(self) -> bool:
        """Read what the command's child has to say; False at the end, which is when it is executed or has failed."""
        data = os.read(self._failure, 65536)
        self._failure_text += data
        return bool(data)

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(64) or OP_KILL
        except OSError:
            return OP_KILL

    def _over(self, command: int) -> bool:
        """True when the command has ended; it stays a zombie, which keeps its group's number from being reused."""
        if not _LINUX:
            pid, status = os.waitpid(command, os.WNOHANG)
            self._status = status if pid else None
            return pid != 0
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)) is not None:
            if ended.si_pid == command:
                return True
            os.waitpid(ended.si_pid, 0)
        return False

    def _end_tree(self, command: int) -> None:
        """SIGKILL until nothing is left to reap."""
        _signal_group(command, signal.SIGKILL)
        if self._status is None:
            send_signal(command, signal.SIGKILL)
            _, self._status = os.waitpid(command, 0)
        while _LINUX:
            for pid in _descendants():
                send_signal(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                return


def _become(request: dict[str, Any], failure: int) -> NoReturn:
    """In the child: limits, directory, execution. A failure is written to `failure`, which execution closes."""
    stage = STAGE_DIRECTORY
    try:
        os.setsid()
        if _LINUX:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(failure, 3, inheritable=False)
        if _LINUX:
            close_from(4)
        os.umask(0o077)
        os.chdir(request["directory"])
        stage = STAGE_EXECUTE
        for which, soft, hard in request["limits"]:
            resource.setrlimit(which, (soft, hard))
        environment = request["environment"]
        os.execvpe(request["argv"][0], request["argv"], environment)  # noqa: S606 - without a shell on purpose
    except BaseException as error:  # noqa: BLE001 - a forked child must not run on as the stub
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        os.write(3, json.dumps({"stage": stage, "reason": reason}).encode())
    finally:
        os._exit(1)


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return  # not a leader yet, or only zombies are left


def _descendants() -> list[int]:
    found = children()
    for pid in found:
        found += children(pid)
    return found


def main(arguments: list[str]) -> None:
    """Serve one request on an inherited socket. Argument: its descriptor."""
    inherited = int(arguments[0])
    channel = socket.socket(fileno=fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, _RESERVED_BELOW))
    os.close(inherited)
    null = os.open(os.devnull, os.O_RDWR)
    if null != _NULL_FD:
        os.dup2(null, _NULL_FD, inheritable=False)
        os.close(null)
    if _LINUX:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    reset_signals()
    Stub(channel).run()
