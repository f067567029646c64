"""Answers: what the launcher sends to the server, in order, without ever waiting for it."""

from __future__ import annotations

import select
import socket

from .wire import ANSWER, STATUS_NOT_STARTED


class Answers:
    """Keeps what the channel does not take yet. A server that is gone gets nothing, and that is no error.

    Args:
        channel: non-blocking, and registered for reading with `poll`.
        poll: of the loop, which calls `flush` when the channel is ready.
    """

    def __init__(self, channel: socket.socket, poll: select.poll) -> None:
        self._channel = channel
        self._poll = poll
        self._unsent: list[bytes] = []

    def failed(self, number: int, reason: str) -> None:
        """Say that a job was not started."""
        self.send(ANSWER.pack(number, STATUS_NOT_STARTED, 0, 0.0, 0.0, *[-1] * 6) + reason.encode())

    def send(self, answer: bytes) -> None:
        """Send one packet, now or when there is room."""
        self._unsent.append(answer)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._unsent:
            try:
                self._channel.send(self._unsent[0])
            except BlockingIOError:
                self._poll.modify(self._channel.fileno(), select.POLLIN | select.POLLOUT)
                return
            except OSError:
                self._unsent.clear()
                return
            del self._unsent[0]
            if not self._unsent:
                self._poll.modify(self._channel.fileno(), select.POLLIN)
