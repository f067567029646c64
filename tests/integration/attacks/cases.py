"""The table of attacks: what each is an example of, what holds it back, and what must be gone for it to get through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sandbox_adapters.runners.controls import Control

_C = Control
NOTHING: Mapping[str, int] = {}


class Grant(Enum):
    """When a runner shows the folder with the bait: to make visible what is not is how the view is taken away."""

    NEVER = "never"
    INSTEAD = "instead"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Case:
    """One attack.

    Args:
        attack: the function's name in `inside`.
        subject: the part of the list of attacks that it belongs to.
        held_by: in words, for docs/attacks.md.
        off: sets of controls; with any one set gone the attack gets through, and with only a part of it, it does not.
        off_as_user: the same for an unprivileged server; None when nothing can be taken away, and `why_not` says so.
        bare: what holds cannot be taken away from a sandbox; the attack gets through without any.
        grant: see Grant.
        limits: of the policy that it runs under.
        cgroup: without a cgroup that bounds memory nothing here holds it.
        roots: it is after something that only root can have prepared.
        machine: not every kernel or machine has what it is after; without any sandbox it then gets nowhere either.
        tracing: a kernel where only descendants may be traced (Yama) holds it as well.
    """

    attack: str
    subject: str
    held_by: str
    off: tuple[frozenset[Control], ...] = ()
    off_as_user: tuple[frozenset[Control], ...] | None = ()
    why_not: str = ""
    bare: bool = False
    grant: Grant = Grant.NEVER
    limits: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    cgroup: bool = False
    roots: bool = False
    machine: bool = False
    tracing: bool = False

    def sets(self, *, root: bool) -> tuple[frozenset[Control], ...]:
        """Return the sets of controls to take away for one kind of server."""
        if root or self.off_as_user == ():
            return self.off
        return self.off_as_user or ()


def _off(*controls: Control) -> tuple[frozenset[Control], ...]:
    return (frozenset(controls),)


def _filtered(attack: str, *, machine: bool = False) -> Case:
    return Case(attack, "privilege", "system call filter", _off(_C.SECCOMP), machine=machine)


_NOT_ROOT = "such a server is not root, so there is nothing of root's to take"
_SMALL = {"max_memory_mb": 64}
_FEW = {"max_processes": 20}

CASES: tuple[Case, ...] = (
    Case("capabilities", "privilege", "no capabilities", _off(_C.CAPABILITIES_NONE)),
    Case("new_privileges", "privilege", "no_new_privs, which bwrap sets too", bare=True),
    Case(
        "suid_program", "privilege", "no_new_privs, nosuid mounts, user namespace", bare=True, grant=Grant.ALWAYS,
        roots=True,
    ),
    Case(
        "file_of_root", "privilege", "a kernel uid of its own", _off(_C.UNIQUE_UID), None, _NOT_ROOT,
        grant=Grant.ALWAYS, roots=True,
    ),
    Case(
        "core_pattern", "privilege", "a kernel uid of its own, read-only /proc",
        _off(_C.UNIQUE_UID, _C.READ_ONLY_PROC, _C.USER), None, _NOT_ROOT,
    ),
    Case(
        "nested_user_namespace", "privilege", "system call filter, no nested user namespaces",
        _off(_C.SECCOMP, _C.DISABLE_USERNS),
    ),
    Case(
        "mount", "privilege", "system call filter, no nested user namespaces, no capabilities",
        _off(_C.SECCOMP, _C.DISABLE_USERNS),
    ),
    _filtered("mount_by_descriptor"),
    _filtered("setns"),
    _filtered("clone3"),
    _filtered("io_uring", machine=True),
    _filtered("unlisted_call"),
    _filtered("trace"),
    _filtered("foreign_memory"),
    _filtered("call_of_32_bits", machine=True),
    _filtered("call_of_x32", machine=True),
    _filtered("typing_into_a_terminal"),
    _filtered("netlink_socket"),
    _filtered("vsock_socket", machine=True),
    _filtered("keyring", machine=True),
    Case(
        "raw_socket", "privilege", "system call filter, no capabilities, user namespace",
        _off(_C.SECCOMP, _C.CAPABILITIES_NONE, _C.USER, _C.UNIQUE_UID), None,
        "the user namespace that owns the network namespace is never the command's",
    ),
    Case(
        "device_node", "privilege", "system call filter, no capabilities, user namespace",
        _off(_C.SECCOMP, _C.CAPABILITIES_NONE, _C.USER, _C.UNIQUE_UID), None,
        "the kernel makes no device for a user namespace, and such a server has no other way",
    ),
    Case("program_of_pid_1", "privilege", "pid 1 hidden", _off(_C.HIDDEN_PID_1)),
    Case("memory_of_pid_1", "privilege", "pid 1 hidden, read-only /proc", _off(_C.HIDDEN_PID_1, _C.READ_ONLY_PROC),
        tracing=True,
    ),
    Case(
        "signal_to_the_host", "privilege", "pid namespace, Landlock scope, a kernel uid of its own",
        _off(_C.PID, _C.LANDLOCK_SCOPES, _C.UNIQUE_UID), _off(_C.PID, _C.LANDLOCK_SCOPES),
    ),
    Case("secret_by_path", "files", "a view without it", grant=Grant.INSTEAD),
    Case("secret_by_symbolic_link", "files", "a view without it", grant=Grant.INSTEAD),
    Case("secret_by_hard_link", "files", "a view without it", grant=Grant.INSTEAD),
    Case("secret_by_magic_link", "files", "a view without it, pid 1 hidden", grant=Grant.INSTEAD),
    Case("socket_of_the_host", "files", "a view without it", grant=Grant.INSTEAD),
    Case("inherited_descriptors", "files", "every descriptor closed", _off(_C.CLOSED_DESCRIPTORS)),
    Case(
        "write_outside_the_workspace", "files", "read-only binds and root", _off(_C.READ_ONLY_ROOT),
        grant=Grant.ALWAYS,
    ),
    Case(
        "space_in_memory_file_systems", "files", "tmpfs with a size", _off(_C.SIZED_TMPFS),
        limits={"workspace_mb": 1},
    ),
    Case("lease_on_a_file", "files", "system call filter", _off(_C.SECCOMP), machine=True),
    Case("file_over_its_size", "files", "rlimit", _off(_C.RLIMITS), limits={"max_file_size_mb": 1}),
    Case("core_file", "files", "rlimit", _off(_C.RLIMITS)),
    Case("environment_of_the_server", "information", "empty environment", _off(_C.EMPTY_ENVIRONMENT)),
    Case("arguments_of_the_host", "information", "pid namespace", _off(_C.PID)),
    Case("processes_of_the_host", "information", "pid namespace", _off(_C.PID)),
    Case("name_of_the_host", "information", "uts namespace", _off(_C.UTS)),
    Case("folders_of_the_host", "information", "a view without it", grant=Grant.INSTEAD),
    Case("cgroup_of_the_host", "information", "cgroup namespace", _off(_C.CGROUP), cgroup=True),
    Case(
        "files_of_the_kernel", "information", "a kernel uid of its own, no capabilities, user namespace",
        _off(_C.UNIQUE_UID, _C.CAPABILITIES_NONE, _C.USER), None, _NOT_ROOT, machine=True,
    ),
    Case("interfaces", "network", "network namespace", _off(_C.NET)),
    Case("loopback_of_the_host", "network", "network namespace", _off(_C.NET)),
    Case("route_to_elsewhere", "network", "network namespace", _off(_C.NET), machine=True),
    Case(
        "abstract_socket_of_the_host", "network", "network namespace, Landlock scope",
        _off(_C.NET, _C.LANDLOCK_SCOPES),
    ),
    Case("memory_shared_by_key", "network", "ipc namespace", _off(_C.IPC)),
    Case("message_queue_of_the_host", "network", "ipc namespace", _off(_C.IPC)),
    Case("session_of_the_launcher", "network", "a session of its own", _off(_C.NEW_SESSION)),
    Case("fork_bomb", "resources", "cgroup, rlimit", _off(_C.CGROUP_TREE, _C.RLIMITS), limits=_FEW),
    Case("thread_bomb", "resources", "cgroup, rlimit", _off(_C.CGROUP_TREE, _C.RLIMITS), limits=_FEW),
    Case("memory_bomb", "resources", "cgroup, rlimit", _off(_C.CGROUP_TREE, _C.RLIMITS), limits=_SMALL),
    Case("memory_bomb_of_many", "resources", "cgroup", _off(_C.CGROUP_TREE), limits=_SMALL, cgroup=True),
    Case("huge_pages", "resources", "system call filter", _off(_C.SECCOMP)),
    Case("memory_file_bomb", "resources", "cgroup", _off(_C.CGROUP_TREE), limits=_SMALL, cgroup=True),
    Case(
        "many_files", "resources", "cgroup, or inodes bounded with the workspace where there is none",
        _off(_C.CGROUP_TREE, _C.SIZED_TMPFS), limits={"max_memory_mb": 16, "workspace_mb": 4},
    ),
    Case("descriptors", "resources", "rlimit", _off(_C.RLIMITS), limits={"max_open_files": 64}),
    Case("pending_signals", "resources", "rlimit", _off(_C.RLIMITS)),
    Case("asynchronous_io", "resources", "system call filter", _off(_C.SECCOMP)),
    Case("locked_memory", "resources", "rlimit", _off(_C.RLIMITS), machine=True),
    Case("cpu_hog", "resources", "rlimit, cgroup", _off(_C.CGROUP_TREE, _C.RLIMITS), limits={"max_cpu_seconds": 1}),
    Case(
        "longer_limits", "resources", "hard rlimits", _off(_C.RLIMITS),
        limits={
            "max_open_files": 64, "max_file_size_mb": 1, "max_memory_mb": 256, "max_cpu_seconds": 10,
            "max_processes": 50,
        },
    ),
    Case("turn_before_the_server", "resources", "nicer than the server", _off(_C.LOW_PRIORITY)),
    Case("order_of_dying", "resources", "oom score, read-only /proc", (*_off(_C.OOM_SCORE), *_off(_C.READ_ONLY_PROC))),
)  # fmt: skip
