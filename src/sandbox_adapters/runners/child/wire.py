"""What the server and the launcher say to each other: packets over an AF_UNIX SOCK_SEQPACKET socket."""

from __future__ import annotations

import errno
import os
import socket
import struct

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


def receive_packet(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return one packet and the descriptors with it; an empty one when the server is gone. Raises OSError."""
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
