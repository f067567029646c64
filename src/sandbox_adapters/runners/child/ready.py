"""ReadyChild: a forked child that waits, already in its cgroup, for the job that it is to become.

The fork, the cgroup and, where that is of version 2, about 10 ms of waiting for the kernel are behind it when a job
comes. It serves one job, and ends with the launcher.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from ..hardening.cgroup_leaf import Leaf  # noqa: TID252 - see child/__init__.py
from .job import HIGHEST_PASSED, Settings, become, close_from_here, complain, settle
from .wire import RunRequest, receive_packet

MAX_PACKET_BYTES = 64 * 1024
"""Longer ones might not fit the socket; they get a child of their own."""

_CHANNEL_FD, _RULESET_FD = 10, 11
"""Over everything that is passed to bwrap."""
_PARKED_FROM = 20
_READY = b"r"


class ReadyChild:
    """The launcher's view. `pid` is a child that has not been reaped; `channel` can be read once it is attached."""

    def __init__(self, pid: int, leaf: Leaf | None, channel: socket.socket) -> None:
        self.pid = pid
        self.leaf = leaf
        self.channel = channel

    @classmethod
    def fork(cls, leaf: Leaf | None, settings: Settings) -> ReadyChild:
        """Start one. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            with theirs:
                pid = os.fork()
                if pid == 0:
                    _wait_and_become(theirs.detach(), leaf, settings)
        except OSError:
            ours.close()
            raise
        return cls(pid, leaf, ours)

    def is_ready(self) -> bool:
        """True when it said that it is attached; to be asked once, when `channel` can be read."""
        try:
            return self.channel.recv(1) == _READY
        except OSError:
            return False

    def hand_over(self, packet: bytes, passed: Sequence[int]) -> bool:
        """Give it a job and what it passes on to bwrap; False when it cannot take it, and must be ended."""
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed).tobytes())]
            return self.channel.sendmsg([packet], ancillary) == len(packet)
        except OSError:
            return False
        finally:
            self.channel.close()


def _wait_and_become(channel_number: int, leaf: Leaf | None, settings: Settings) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        settle(leaf, settings)
        # Nothing of other jobs, and not the launcher's own channel, may stay open here.
        channel_number = fcntl.fcntl(channel_number, fcntl.F_DUPFD_CLOEXEC, _PARKED_FROM)
        if settings.ruleset >= 0:
            parked = fcntl.fcntl(settings.ruleset, fcntl.F_DUPFD_CLOEXEC, _PARKED_FROM)
            os.dup2(parked, _RULESET_FD, inheritable=False)
            settings = settings.with_ruleset(_RULESET_FD)
        os.dup2(channel_number, _CHANNEL_FD, inheritable=False)
        close_from_here(_RULESET_FD + 1, settings)
        channel = socket.socket(fileno=_CHANNEL_FD)
        channel.setblocking(True)
        channel.send(_READY)
        packet, passed = receive_packet(channel, HIGHEST_PASSED + 1)
        if not packet:
            os._exit(0)
        become(RunRequest.parse(packet), passed, settings)
    except BaseException as error:  # noqa: BLE001 - a forked child must not run on into the parent's loop
        with contextlib.suppress(OSError):
            complain(error)
    finally:
        os._exit(1)
