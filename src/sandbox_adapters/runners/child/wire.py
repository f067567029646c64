"""What the server and the launcher say to each other: packets over an AF_UNIX SOCK_SEQPACKET socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

OP_RUN, OP_TERMINATE, OP_KILL = b"R", b"T", b"K"

COMMAND = struct.Struct("=cQ")
"""Every packet to the launcher: operation, job."""
RUN = struct.Struct("=qqqqqqHB")
"""Follows COMMAND for OP_RUN: uid and gid of the job (one number; -1 keeps the launcher's), processes allowed inside
(-1: no limit set inside), bytes of memory, number of processes and seconds of CPU time that the job's cgroup may have
(-1: no limit), files that each private file system may have (0: as many as the kernel lets it), port of 127.0.0.1
inside where a proxy is to be reached (0: none), number of LIMITs that follow; then bwrap's path, what is granted
(`grant_mounts.enter`; empty for nothing) and the command, NUL separated.
Four descriptors come along: stdin, stdout, stderr, bwrap's options; with a port a fifth, the AF_UNIX socket that the
listener made inside is sent to (`inside.LISTENER_MADE`)."""
LIMIT = struct.Struct("=iQQ")
"""Resource (setrlimit(2)), soft limit, hard limit."""
ANSWER = struct.Struct("=QiBddqqqqqq")
"""From the launcher: job, wait status of bwrap (-1: it could not be started), FLAG_*, user and system CPU seconds,
largest resident set in KiB, and of the job's cgroup: peak of memory in bytes, processes killed for want of memory, peak
of processes, forks refused, processes still in it (-1 unknown, each); then a text, empty unless the start failed."""

FLAG_EXECUTED = 1
"""bwrap reported an exit code of the command, so the command was executed."""

STATUS_NOT_STARTED = -1
MAX_PACKET_BYTES = 1 << 19
JOB_DESCRIPTORS, RUN_DESCRIPTORS = 4, 5


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A packet of OP_RUN, taken apart."""

    uid: int
    processes_inside: int
    tree_memory_bytes: int
    tree_processes: int
    tree_cpu_seconds: int
    limits: tuple[tuple[int, int, int], ...]
    bwrap: bytes
    command: tuple[bytes, ...]
    proxy_port: int = 0
    grants: bytes = b""
    inodes: int = 0

    @classmethod
    def parse(cls, packet: bytes) -> RunRequest:
        """Take a packet apart. Raises struct.error."""
        uid, inside, memory, processes, cpu, inodes, proxy_port, limit_count = RUN.unpack_from(packet, COMMAND.size)
        offset = COMMAND.size + RUN.size
        end = offset + LIMIT.size * limit_count
        limits = tuple(LIMIT.iter_unpack(packet[offset:end]))
        bwrap, grants, *command = packet[end:].split(b"\0")
        return cls(uid, inside, memory, processes, cpu, limits, bwrap, tuple(command), proxy_port, grants, inodes)

    def pack(self, number: int) -> bytes:
        """Return the packet for job `number`."""
        tree = (self.tree_memory_bytes, self.tree_processes, self.tree_cpu_seconds)
        numbers = RUN.pack(self.uid, self.processes_inside, *tree, self.inodes, self.proxy_port, len(self.limits))
        limits = b"".join(LIMIT.pack(*limit) for limit in self.limits)
        texts = b"\0".join((self.bwrap, self.grants, *self.command))
        return b"".join((COMMAND.pack(OP_RUN, number), numbers, limits, texts))


def receive_packet(channel: socket.socket, most_descriptors: int = RUN_DESCRIPTORS) -> tuple[bytes, list[int]]:
    """Return one packet and the descriptors with it; an empty one when the other end is gone. Raises OSError."""
    space = socket.CMSG_SPACE(4 * most_descriptors)
    packet, ancillary, flags, _ = channel.recvmsg(MAX_PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"={len(data) // 4}i", data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError(errno.EMSGSIZE, "a packet was cut off")
    return packet, descriptors
