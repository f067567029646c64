"""Controls: what a test takes away from a runner to show that an attack needs it gone.

Nothing but a test makes one: no setting, environment variable, policy or request leads here; a unit test holds that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Control(StrEnum):
    """One wall. Where `Isolation.layers` has a name for it, that is its value."""

    USER = "user"
    PID = "pid"
    IPC = "ipc"
    UTS = "uts"
    NET = "net"
    CGROUP = "cgroup"
    DISABLE_USERNS = "disable_userns"
    CAPABILITIES_NONE = "capabilities_none"
    NEW_SESSION = "new_session"
    READ_ONLY_ROOT = "read_only_root"
    READ_ONLY_PROC = "read_only_proc"
    HIDDEN_PID_1 = "hidden_pid_1"
    SIZED_TMPFS = "sized_tmpfs"
    EMPTY_ENVIRONMENT = "empty_environment"
    PARENT_DEATH_SIGNAL = "parent_death_signal"
    MARKED_PROCESSES = "marked_processes"
    CLOSED_DESCRIPTORS = "closed_descriptors"
    OOM_SCORE = "oom_score"
    LOW_PRIORITY = "low_priority"
    RLIMITS = "rlimits"
    UNIQUE_UID = "unique_uid"
    SECCOMP = "seccomp"
    LANDLOCK_SCOPES = "landlock_scopes"
    CGROUP_TREE = "cgroup_tree"
    NO_SET_ID_BITS = "no_set_id_bits"
    NO_LINKS_IN_GRANTS = "no_links_in_grants"


_Edit = tuple[Sequence[str | None], Sequence[str]]
"""Words among bwrap's options, None for any one, and what stands there instead."""

_EDITS: Mapping[Control, Sequence[_Edit]] = MappingProxyType(
    {
        Control.USER: (
            (("--unshare-user",), ()),
            (("--disable-userns",), ()),
            (("--uid", None), ()),
            (("--gid", None), ()),
        ),
        Control.PID: ((("--unshare-pid",), ()),),
        Control.IPC: ((("--unshare-ipc",), ()),),
        Control.UTS: ((("--unshare-uts",), ()), (("--hostname", None), ())),
        Control.NET: ((("--unshare-net",), ()),),
        Control.CGROUP: ((("--unshare-cgroup",), ()),),
        Control.DISABLE_USERNS: ((("--disable-userns",), ()),),
        Control.CAPABILITIES_NONE: ((("--cap-drop", "ALL"), ("--cap-add", "ALL")),),
        Control.NEW_SESSION: ((("--new-session",), ()),),
        Control.HIDDEN_PID_1: ((("--ro-bind", None, "/proc/1"), ()),),
        Control.READ_ONLY_PROC: ((("--remount-ro", "/proc"), ()),),
        Control.READ_ONLY_ROOT: (
            (("--remount-ro", "/"), ()),
            (("--remount-ro", "/dev"), ()),
            (("--ro-bind",), ("--bind",)),
        ),
        Control.SIZED_TMPFS: ((("--size", None), ()),),
        Control.EMPTY_ENVIRONMENT: ((("--clearenv",), ()),),
        Control.PARENT_DEATH_SIGNAL: ((("--die-with-parent",), ()),),
    }
)


@dataclass(frozen=True, slots=True)
class Controls:
    """Which walls a runner goes without; none by default.

    Args:
        without: the walls left out. The record of each execution leaves them out too.
        self_tested: the start-up self-test judges all the same, and finds what it can.
    """

    without: frozenset[Control] = frozenset()
    self_tested: bool = False

    @property
    def judged(self) -> bool:
        """True when the start-up self-test is to refuse what is missing."""
        return self.self_tested or not self.without

    def has(self, control: Control) -> bool:
        """True when a wall stands."""
        return control not in self.without

    def layers(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the names of layers that are applied."""
        return tuple(name for name in names if name not in self.without)

    def limits(self, mechanisms: Mapping[str, str]) -> Mapping[str, str]:
        """Return those of the mechanisms that hold a limit."""
        if self.has(Control.RLIMITS) and self.has(Control.SIZED_TMPFS):
            return mechanisms
        held = dict(mechanisms)
        if not self.has(Control.SIZED_TMPFS):
            held.pop("workspace_mb", None)
        if not self.has(Control.RLIMITS):
            parts = {name: [part for part in text.split("; ") if "rlimit" not in part] for name, text in held.items()}
            held = {name: "; ".join(left) for name, left in parts.items() if left}
        return held

    def options(self, packed: bytes) -> bytes:
        """Return bwrap's options, NUL-ended words, without what is left out."""
        if not self.without:
            return packed
        words = packed.decode().split("\0")
        for control in Control:
            for old, new in () if self.has(control) else _EDITS.get(control, ()):
                words = _replaced(words, old, new)
        return "\0".join(words).encode()

    def argument(self) -> str:
        """Return the launcher's argument: the names of what is left out."""
        return ",".join(sorted(self.without))


ALL = Controls()


def _replaced(words: Sequence[str], old: Sequence[str | None], new: Sequence[str]) -> list[str]:
    found: list[str] = []
    index = 0
    while index < len(words):
        part = words[index : index + len(old)]
        if len(part) == len(old) and all(want in (None, word) for want, word in zip(old, part, strict=True)):
            found += new
            index += len(old)
        else:
            found.append(words[index])
            index += 1
    return found
