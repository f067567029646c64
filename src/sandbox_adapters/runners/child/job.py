"""One job of the launcher: what is known of it, and what its child does before it is bwrap."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

from ..hardening import landlock  # noqa: TID252 - see child/__init__.py
from ..hardening.cgroup_leaf import Leaf, TreeUsage  # noqa: TID252 - see child/__init__.py
from .inside import Preparation
from .kernel import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, children, close_from, parent_of, prctl, send_signal
from .marks import mark_of
from .wire import RunRequest

OPTIONS_FD, STATUS_FD, FILTER_FD, BLOCK_FD, HOLD_FD = 3, 4, 5, 6, 7
"""What bwrap finds where, after the command's own three. The last two, which are the ends of one pipe, only when
something waits for it: with an end of its own to write to, it never takes the launcher's death for leave to go on."""
HIGHEST_PASSED = HOLD_FD
_OOM_SCORE_ADJ = b"900"
_NICE = 10
"""More than the server, which so gets a core soon, however many processes of executions keep all busy (sched(7)). Still
more would keep sandboxes from being made on a machine that others keep busy."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for every job: the process whose death ends it, and a Landlock ruleset, -1 for none.

    `mark` is argv[0] of every bwrap (`marks.mark_of`). `without` names what a test has taken away (`controls.Control`).
    """

    parent: int
    ruleset: int
    mark: bytes = b"bwrap"
    without: frozenset[str] = frozenset()

    @classmethod
    def here(cls, directory: str, without: frozenset[str]) -> Settings:
        """Return those for children of this process, which works for a runtime directory. Raises OSError."""
        scopes = landlock.detect().scopes and "landlock_scopes" not in without
        ruleset = landlock.make_ruleset(landlock.detect()) if scopes else -1
        own = os.getpid()
        return cls(own, ruleset, b"bwrap" if "marked_processes" in without else mark_of(directory, own), without)

    def with_ruleset(self, ruleset: int) -> Settings:
        """Return the same with another descriptor."""
        return replace(self, ruleset=ruleset)


@dataclass(slots=True)
class Job:
    """One bwrap and what is left of its tree. `outer` is bwrap; `init` the sandbox's pid 1, once known."""

    number: int
    outer: int
    status_fd: int
    block_fd: int
    processes_inside: int
    leaf: Leaf | None = None
    status_text: bytes = b""
    init: int = 0
    wait_status: int | None = None
    waiting_for: set[int] = field(default_factory=set)
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_kib: int = -1
    terminate_wanted: bool = False
    killed: bool = False
    preparation: Preparation | None = None
    helper: int = 0
    failure: str = ""
    """Why the command must never run; it is answered as one that could not be started."""

    @property
    def over(self) -> bool:
        """True when bwrap and whatever it left were reaped: nothing of the job runs any more."""
        return self.wait_status is not None and not self.waiting_for

    @property
    def executed(self) -> bool:
        """True when bwrap reported an exit code, which it does for a command that it executed."""
        return b'"exit-code":' in self.status_text

    def usage(self) -> tuple[float, float, int, int, int, int, int, int]:
        """Return the numbers of an ANSWER, from the job's cgroup where that knows better."""
        tree = TreeUsage() if self.leaf is None else self.leaf.usage()
        counts = (tree.peak_memory_bytes, tree.oom_kills, tree.peak_processes, tree.forks_refused, tree.processes)
        memory, oom_kills, processes, refused, left = (-1 if count is None else count for count in counts)
        user = self.user_seconds if tree.user_seconds is None else tree.user_seconds
        system = self.system_seconds if tree.system_seconds is None else tree.system_seconds
        return user, system, self.max_rss_kib, memory, oom_kills, processes, refused, left

    @property
    def is_init(self) -> bool:
        """True while `init` is what it was: bwrap's child."""
        return parent_of(self.init) == self.outer

    def terminate(self) -> None:
        """SIGTERM to the payload's process group; wanted again shortly while there is no payload yet."""
        self.terminate_wanted = False
        if self.wait_status is not None:
            return
        self.read_status()
        if not self.init:
            self.terminate_wanted = True
            return
        if not self.is_init:
            return
        payload = next(iter(children(self.init)), 0)
        if not payload:
            self.terminate_wanted = True
            return
        try:
            # bwrap's pid 1 is in the same group and, as an init without a handler, ignores it (pid_namespaces(7)).
            os.killpg(os.getpgid(payload), signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            self.terminate_wanted = True

    def kill(self) -> None:
        """SIGKILL to whatever of the tree is known."""
        self.killed = True
        if self.wait_status is None:
            send_signal(self.outer, signal.SIGKILL)
        for pid in self.waiting_for:
            send_signal(pid, signal.SIGKILL)
        if self.leaf is not None and not self.over:
            # Last, as it may have to wait for a process that is just being moved into its cgroup.
            self.leaf.kill_at_once()

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


def settle(leaf: Leaf | None, settings: Settings) -> None:
    """In the forked child: what needs no job to be known. Raises OSError."""
    _end_with_parent(settings)
    if "oom_score" not in settings.without:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
            score.write(_OOM_SCORE_ADJ)
    if "low_priority" not in settings.without:
        os.nice(_NICE)
    os.umask(0o077)
    if leaf is not None:
        leaf.enter()


def become(request: RunRequest, passed: Sequence[int], settings: Settings) -> NoReturn:
    """In the settled child: take the job's identity and limits, then execute bwrap.

    Args:
        request: the job.
        passed: descriptors that become 0, 1, 2 … in this order, each over 9; every other one is closed.
        settings: those that it was settled with.
    """
    try:
        for target, descriptor in enumerate(passed):
            os.dup2(descriptor, target)
        refuse_set_id_bits = _take_grants(request, settings) if request.grants else None
        if request.uid >= 0:
            os.setgroups([])
            os.setresgid(request.uid, request.uid, request.uid)
            os.setresuid(request.uid, request.uid, request.uid)
        # Changing ids clears it (prctl(2)); the parent may have died before it was set again.
        _end_with_parent(settings)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if settings.ruleset >= 0:
            landlock.restrict_self(settings.ruleset)
        close_from_here(len(passed), settings)
        if refuse_set_id_bits is not None and "no_set_id_bits" not in settings.without:
            refuse_set_id_bits()
        for which, soft, hard in request.limits:
            resource.setrlimit(which, (soft, hard))
        environment = dict(os.environ) if "empty_environment" in settings.without else {}
        os.execve(request.bwrap, _argv(request, len(passed), settings.mark), environment)  # noqa: S606 - without a shell is the point
    except BaseException as error:  # noqa: BLE001 - a forked child must not run on into the parent's loop
        complain(error)
    finally:
        os._exit(1)


def close_from_here(lowest: int, settings: Settings) -> None:
    """Close every descriptor from `lowest` on."""
    if "closed_descriptors" not in settings.without:
        close_from(lowest)


def _end_with_parent(settings: Settings) -> None:
    if "parent_death_signal" not in settings.without:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings.parent:
        os._exit(1)


def _take_grants(request: RunRequest, settings: Settings) -> Callable[[], None]:
    """Mount what is granted and return what is to be called once no_new_privs is set."""
    # Imported by the few children that need it, so that the others and the launcher stay small; and before the uid
    # changes, which may not be able to read Python's own files.
    from ..hardening import set_id_filter  # noqa: TID252 - see child/__init__.py
    from .grant_mounts import enter

    enter(request.grants, request.uid, follow_links="no_links_in_grants" in settings.without)
    return partial(set_id_filter.restrict_self, set_id_filter.build_filter())


def complain(error: BaseException) -> None:
    """Say on standard error why there is no bwrap, as bwrap would."""
    reason = error.strerror if isinstance(error, OSError) else repr(error)
    os.write(2, b"bwrap: cannot be started: %s\n" % str(reason).encode())


def _argv(request: RunRequest, passed: int, mark: bytes) -> list[bytes]:
    argv = [mark, b"--args", b"%d" % OPTIONS_FD, b"--json-status-fd", b"%d" % STATUS_FD]
    argv += [b"--seccomp", b"%d" % FILTER_FD]
    if passed > BLOCK_FD:
        argv += [b"--block-fd", b"%d" % BLOCK_FD, b"--sync-fd", b"%d" % HOLD_FD]
    return [*argv, b"--", *request.command]


def _number_after(text: bytes, key: bytes) -> int:
    _, found, rest = text.partition(key)
    digits = rest.split(b",")[0].split(b"}")[0].strip()
    return int(digits) if found and digits.isdigit() and b"\n" in rest else 0
