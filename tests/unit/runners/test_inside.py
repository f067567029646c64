"""The parts of the launcher's helper that need no sandbox."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from sandbox_adapters.runners.child import inside

OWN = "/proc/self"


def test_what_a_connection_may_keep_in_the_kernel_is_bounded() -> None:
    with inside.listen(0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                # The kernel doubles what is asked for, and no longer adapts it (socket(7)).
                assert accepted.getsockopt(socket.SOL_SOCKET, option) <= 2 * 256 * 1024


def test_a_helper_that_did_its_work_has_no_failure() -> None:
    assert inside.failure(0) == ""


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (errno.EPERM << 8, "it could not be prepared: Operation not permitted"),
        (255 << 8, "it could not be prepared: the helper process failed"),
        (9, "it could not be prepared: the helper process failed"),
    ],
)
def test_every_other_end_is_a_failure(status: int, said: str) -> None:
    assert inside.failure(status) == said


def test_a_number_that_means_another_process_by_now_is_refused() -> None:
    with pytest.raises(ProcessLookupError):
        inside.start(os.getpid(), os.getpid(), -1, lambda process: None)
    with pytest.raises(FileNotFoundError):
        inside.start(1 << 22, os.getpid(), -1, lambda process: None)


def test_ones_own_namespaces_are_never_entered() -> None:
    process = os.open(OWN, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(PermissionError, match="no namespace of its own"):
            inside.enter(process, "net")
    finally:
        os.close(process)
