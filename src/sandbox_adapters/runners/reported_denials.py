"""What the program itself said was refused: a bounded reader of the end of its standard error.

Without tracing, which would slow every call, nobody but the program knows what an ordinary call was refused. The common
programs and languages say it in a few shapes; those are read. The text is the program's own, so it proves nothing:
every message says so, and nothing of it decides anything.

Only the one refusal that ends a process is known without its word: SIGSYS.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sandbox_adapters.runners.bubblewrap_options import WRITABLE
from sandbox_adapters.runners.child.protected_names import protected_part
from sandbox_adapters.runners.grants import host_path
from sandbox_adapters.runners.hardening.syscall_rules import REFUSED
from sandbox_core.domain.denial import Denial, DenialKind, bounded
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits, path_within
from sandbox_core.ports.runner import ProcessExit

MAX_READ_BYTES = 8 * 1024
"""Of the end of standard error; the line that this cuts is left out."""

_MAX_LINE_CHARACTERS = 1024
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]{0,32}[@-~]")

_PLAIN_QUOTES = str.maketrans("\u2018\u2019`", "'''")

_READ_ONLY, _DENIED, _NOT_PERMITTED = "read-only file system", "permission denied", "operation not permitted"
_FULL, _TOO_LARGE, _TOO_MANY_OPEN = "no space left on device", "file too large", "too many open files"
_NOT_THERE, _SUPERUSER = "function not implemented", "must be superuser"
_ERROR = re.compile(
    "|".join((_READ_ONLY, _DENIED, _NOT_PERMITTED, _FULL, _TOO_LARGE, _TOO_MANY_OPEN, _NOT_THERE, _SUPERUSER)),
    re.IGNORECASE,
)
"""The texts of strerror(3), as C, Python, Node (in small letters), Go and Rust print them."""

_NO_MEMORY = re.compile(
    r"cannot allocate memory|\bMemoryError\b|std::bad_alloc|memory exhausted|(?<!heap )\bout of memory\b", re.IGNORECASE
)
"""ENOMEM in the words of C, Python, C++, GNU programs, Go and Perl; a full heap of Node or Java is their own limit."""

_QUOTED_AFTER = re.compile(r"""(?::|,\ [a-z]{1,32})\ b?(?P<quote>['"])(?P<path>[^'"]+)(?P=quote)""", re.VERBOSE)
"""Python: `[Errno 30] Read-only file system: '/x'`; Node: `EROFS: read-only file system, open '/x'`."""
_QUOTED_LAST = re.compile(r"""['"](?P<path>[^'"]+)['"]$""")
"""coreutils: `touch: cannot touch '/usr/x'`."""
_POSITION = re.compile(r"(?:line )?\d+")

_CALL_OF_PROGRAM = {
    "nsenter": "setns", "umount": "umount2", "strace": "ptrace", "gdb": "ptrace", "ltrace": "ptrace", "dmesg": "syslog",
    "insmod": "init_module", "modprobe": "init_module", "hostname": "sethostname", "date": "settimeofday",
    "perf": "perf_event_open", "bpftool": "bpf", "ping": "socket",
}  # fmt: skip
_WORD = re.compile(r"[a-z_][a-z0-9_]*")

_HOST = r"""(?P<host>[^\s'";,()<>/]+?)"""
_UNNAMED_HOST = "a name or address that was not reported"
_UNRESOLVED = r"(?:temporary failure in name resolution|name or service not known)"
_NO_NETWORK = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"host='(?P<host>[^\s']+)', port=(?P<port>\d{1,5})",
        rf"could not resolve (?:host(?:name)?:? )?['\"]?{_HOST}['\"]?(?:[\s;,:]|$)",
        rf"unable to resolve host address ['\"]?{_HOST}['\"]?(?:\s|$)",
        rf"resolving {_HOST}(?: \(\S+\))?\.\.\. failed",
        rf"failed to resolve ['\"]{_HOST}['\"]",
        rf"getaddrinfo (?:EAI_AGAIN|ENOTFOUND) {_HOST}(?::(?P<port>\d{{1,5}}))?(?:\s|$)",
        rf"dial (?:tcp|udp): lookup {_HOST}(?: on \S+)?: ",
        rf"failed to connect to {_HOST} port (?P<port>\d{{1,5}})\b",
        rf"/dev/(?:tcp|udp)/{_HOST}/(?P<port>\d{{1,5}}): ",
        rf"(?:^|\s){_HOST}: {_UNRESOLVED}",
        rf"{_UNRESOLVED}|network is unreachable",
    )
)
"""The last is for those that name no host."""
_LOOPBACK = re.compile(r"localhost|127\..*|::1|\[::1\]")


_ENDED_BY_FILTER = Denial(
    DenialKind.SYSCALL, "a call of another architecture", "seccomp",
    "Ended by SIGSYS: the system call filter does that to calls of another architecture, such as 32-bit programs.",
)  # fmt: skip


class LastWords:
    """Keeps the end of a stream that passes by."""

    def __init__(self) -> None:
        self._text = b""
        self._cut = False

    def add(self, data: bytes) -> None:
        """Take note of the next piece."""
        text = self._text + data[-MAX_READ_BYTES:]
        self._cut = self._cut or len(self._text) + len(data) > MAX_READ_BYTES
        self._text = text[-MAX_READ_BYTES:]

    def with_denials(self, exit_: ProcessExit, policy: ExecutionPolicy) -> ProcessExit:
        """Return the exit of a command that failed, with what was refused to it after what is known already."""
        ended = (_ENDED_BY_FILTER,) if exit_.signal == signal.SIGSYS else ()
        said, omitted = self.denials(policy)
        if not (ended or said or omitted):
            return exit_
        denials, more = bounded((*exit_.denials, *ended, *said))
        return replace(exit_, denials=denials, denials_omitted=exit_.denials_omitted + omitted + more)

    def denials(self, policy: ExecutionPolicy) -> tuple[tuple[Denial, ...], int]:
        """Return what was refused under `policy` as far as it is said here, and how much more of it is not kept."""
        if not self._text:
            return (), 0
        lines = self._text.decode(errors="replace").splitlines()
        found = list(_read(lines[1:] if self._cut else lines, _Rules.of(policy)))
        if any(each.kind is DenialKind.NETWORK and each.target != _UNNAMED_HOST for each in found):
            # The same refusal in other words.
            found = [each for each in found if each.target != _UNNAMED_HOST]
        return bounded(found)


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a line is held against, made once for all lines. Of denials with wildcards none is recognised."""

    limits: ResourceLimits
    has_network: bool
    allow_write: tuple[str, ...]
    deny_read: tuple[str, ...]
    deny_write: tuple[str, ...]

    @property
    def grants_host(self) -> bool:
        """True when something may be written beyond what is the sandbox's own."""
        return not all(_within(path, WRITABLE) for path in self.allow_write)

    @classmethod
    def of(cls, policy: ExecutionPolicy) -> _Rules:
        files = policy.filesystem
        paths = (tuple(map(host_path, entries)) for entries in (files.allow_write, files.deny_read, files.deny_write))
        return cls(policy.resource_limits, bool(policy.network.allowed_domains), *paths)


def _read(lines: list[str], rules: _Rules) -> Iterator[Denial]:
    for each in lines:
        line = _ESCAPE_SEQUENCE.sub("", each[:_MAX_LINE_CHARACTERS]).translate(_PLAIN_QUOTES)
        line = "".join(letter for letter in line if letter.isprintable()).strip()
        denial = _of_call_or_file(line, rules)
        if denial is None and not rules.has_network:
            denial = _of_network(line)
        if denial is not None:
            yield denial


def _of_call_or_file(line: str, rules: _Rules) -> Denial | None:
    found = _ERROR.search(line)
    if found is None:
        return _of_memory(line, rules.limits)
    error, before, after = found[0].lower(), line[: found.start()].rstrip(" :[("), line[found.end() :]
    fields = before.split(": ")
    if error in (_NOT_PERMITTED, _NOT_THERE, _SUPERUSER, _DENIED) and (call := _call_of(fields, error)):
        return Denial(
            DenialKind.SYSCALL, call, "seccomp",
            f"The program reported: {found[0]}. The system call filter refuses {call}; there is nothing to ask for, "
            "so do without it.",
        )  # fmt: skip
    return _of_file(error, _path_of(fields, after), rules)


def _call_of(fields: list[str], error: str) -> str | None:
    program = fields[0].rsplit("/", 1)[-1]
    call = _CALL_OF_PROGRAM.get(program)
    if call is None and program in REFUSED:
        call = program
    if error == _DENIED:
        # Only mount(8) says so of the call; elsewhere it is about files.
        return call if call == "mount" else None
    if call is None:
        call = next((word for field in fields[1:] for word in _WORD.findall(field) if word in REFUSED), None)
    return call


def _path_of(fields: list[str], after: str) -> str | None:
    """Return what the error is about: as quoted behind it, else the last thing named before it."""
    if quoted := _QUOTED_AFTER.match(after):
        return quoted["path"]
    for field in reversed(fields[1:] or fields):
        if quoted := _QUOTED_LAST.search(field):
            return quoted["path"]
        if field.startswith(("/", "./", "~/")):
            return field
        last = field.rsplit(" ", 1)[-1]
        if last.startswith("/"):
            return last
    # A shell: `bash: line 1: x`.
    name = fields[-1]
    return name if len(fields) > 1 and " " not in name and not _POSITION.fullmatch(name) else None


def _of_file(error: str, path: str | None, rules: _Rules) -> Denial | None:
    limits, full = rules.limits, "" if path is None else host_path(path)
    if error == _READ_ONLY and path is not None:
        if _within(full, rules.deny_write):
            return _file(path, "filesystem.deny_write", error, "The policy denies writing there.")
        # Relative to a directory that is not known, which can only be read-only when it is none of the sandbox's own.
        granted = rules.grants_host if not path.startswith(("/", "~")) else _within(full, rules.allow_write)
        if granted and (part := protected_part(full)) is not None:
            return _file(
                path, "protected names", error,
                f"Programs on the host run or obey {part!r}, so no grant lets it be changed, unless the "
                "operator's ceiling names it.",
            )  # fmt: skip
        return _file(
            path, "filesystem.allow_write", error,
            "Write below /workspace or /tmp, or ask for the path in filesystem.allow_write, "
            "as far as the operator permits it.",
        )  # fmt: skip
    if error in (_DENIED, _NOT_PERMITTED) and path is not None and path.startswith(("/", "~/")):
        if _within(full, rules.deny_read):
            return _file(path, "filesystem.deny_read", error, "The policy denies reading there.")
        if _within(full, WRITABLE):
            return None
        return _file(
            path, "capabilities_none", error,
            "Commands run as an unprivileged user without capabilities, so the file's own permissions count.",
        )  # fmt: skip
    if error == _FULL and limits.workspace_mb is not None:
        return _file(
            path or "/workspace", "resource_limits.workspace_mb", error,
            f"/workspace and /tmp hold {limits.workspace_mb} MiB each: write less, or ask for more.",
        )  # fmt: skip
    if error == _TOO_LARGE and limits.max_file_size_mb is not None:
        return _file(
            path or "a file", "resource_limits.max_file_size_mb", error,
            f"A file may have {limits.max_file_size_mb} MiB: write smaller ones, or ask for more.",
        )  # fmt: skip
    if error == _TOO_MANY_OPEN and limits.max_open_files is not None:
        return _file(
            path or "a file", "resource_limits.max_open_files", error,
            f"A process may have {limits.max_open_files} files open: close some, or ask for more.",
        )  # fmt: skip
    return None


def _of_memory(line: str, limits: ResourceLimits) -> Denial | None:
    """A process over the limit by itself is refused memory, and goes on: no kernel counts that."""
    found = _NO_MEMORY.search(line)
    if found is None or limits.max_memory_mb is None:
        return None
    return Denial(
        DenialKind.SYSCALL, "mmap", "resource_limits.max_memory_mb",
        f"The program reported: {found[0]}. It may have {limits.max_memory_mb} MiB: use less, or ask for more.",
    )  # fmt: skip


def _file(path: str, rule: str, error: str, advice: str) -> Denial:
    return Denial(DenialKind.FILESYSTEM, path, rule, f"The program reported: {error}. {advice}")


def _within(path: str, directories: tuple[str, ...]) -> bool:
    return any(path_within(path, directory) for directory in directories)


def _of_network(line: str) -> Denial | None:
    for pattern in _NO_NETWORK:
        if found := pattern.search(line):
            named = found.groupdict()
            host = (named.get("host") or _UNNAMED_HOST).rstrip(".:")
            if _LOOPBACK.fullmatch(host):
                return None
            target = f"{host}:{named['port']}" if named.get("port") else host
            return Denial(
                DenialKind.NETWORK, target, "network.allowed_domains",
                "The program reported that it could not be reached. This execution has no network: ask for the domain "
                "in network.allowed_domains, as far as the operator permits it.",
            )  # fmt: skip
    return None
