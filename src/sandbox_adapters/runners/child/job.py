"""One job of the launcher: what is known of it, and what its child does before it is bwrap."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass, field
from typing import NoReturn

from ..hardening import landlock  # noqa: TID252 - runs where sandbox_adapters is not a package
from .kernel import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, close_from, prctl

_OOM_SCORE_ADJ = b"900"


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

    @property
    def executed(self) -> bool:
        """True when bwrap reported an exit code, which it does for a command that it executed."""
        return b'"exit-code":' in self.status_text

    def count(self, usage: resource.struct_rusage) -> None:
        """Add what a reaped process and its reaped children used."""
        self.user_seconds += usage.ru_utime
        self.system_seconds += usage.ru_stime

    def read_status(self) -> None:
        """Take what bwrap has reported on its `--json-status-fd` so far."""
        try:
            while data := os.read(self.status_fd, 4096):
                self.status_text += data
        except BlockingIOError:
            pass
        if not self.init:
            self.init = _number_after(self.status_text, b'"child-pid":')


def become(
    bwrap: bytes,
    argv: list[bytes],
    passed: list[int],
    uid: int,
    limits: list[tuple[int, int, int]],
    parent: int,
    ruleset: int,
) -> NoReturn:
    """In the forked child: take the job's identity and limits, then execute bwrap.

    Args:
        passed: descriptors that become 0, 1, 2 … in this order; every other one is closed.
        uid: user and group id to change to; -1 keeps them.
        limits: (resource, soft, hard) for setrlimit(2).
        parent: the process whose death ends this one.
        ruleset: of Landlock, to be under from now on; -1 for none.
    """
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
            score.write(_OOM_SCORE_ADJ)
        os.umask(0o077)
        for target, descriptor in enumerate(passed):
            os.dup2(descriptor, target)
        if uid >= 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        # Changing ids clears it (prctl(2)); the parent may have died before it was set.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if ruleset >= 0:
            landlock.restrict_self(ruleset)
        close_from(len(passed))
        for which, soft, hard in limits:
            resource.setrlimit(which, (soft, hard))
        os.execve(bwrap, argv, {})  # noqa: S606 - executing without a shell is the point
    except BaseException as error:  # noqa: BLE001 - a forked child must not run on into the parent's loop
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        os.write(2, b"bwrap: cannot be started: %s\n" % str(reason).encode())
    finally:
        os._exit(1)


def _number_after(text: bytes, key: bytes) -> int:
    _, found, rest = text.partition(key)
    digits = rest.split(b",")[0].split(b"}")[0].strip()
    return int(digits) if found and digits.isdigit() and b"\n" in rest else 0
