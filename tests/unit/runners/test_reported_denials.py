"""What programs print when something is refused is read as a denial, and nothing hostile gets further than that."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.runners.reported_denials import MAX_READ_BYTES, LastWords
from sandbox_core.domain.denial import MAX_DENIALS, MAX_MESSAGE_CHARACTERS, MAX_TARGET_CHARACTERS, Denial, DenialKind
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, NetworkPolicy, ResourceLimits
from sandbox_core.ports.runner import ProcessExit

WRITE, CAPABILITIES, FILTER = "filesystem.allow_write", "capabilities_none", "seccomp"
DOMAINS = "network.allowed_domains"
MEMORY = "resource_limits.max_memory_mb"
FILES, CALLS, NETWORK = DenialKind.FILESYSTEM, DenialKind.SYSCALL, DenialKind.NETWORK
LIMITED = ExecutionPolicy(
    resource_limits=ResourceLimits(workspace_mb=16, max_file_size_mb=2, max_open_files=64, max_memory_mb=32),
    filesystem=FilesystemPolicy(deny_read=("/opt/keys",), allow_write=("/srv",), deny_write=("/srv/kept", "sub")),
)
REPORTED = [
    # Shells and coreutils.
    ("bash: /etc/x: Read-only file system", FILES, "/etc/x", WRITE),
    ("/bin/bash: line 1: /etc/x y: Read-only file system", FILES, "/etc/x y", WRITE),
    ("bash: line 12: x: Read-only file system", FILES, "x", WRITE),
    ("sh: 1: cannot create /etc/x: Read-only file system", FILES, "/etc/x", WRITE),
    ("touch: cannot touch '/usr/x': Read-only file system", FILES, "/usr/x", WRITE),
    ("mkdir: cannot create directory \u2018/usr/x\u2019: Read-only file system", FILES, "/usr/x", WRITE),
    ("mv: cannot move 'a' to '/usr/b': Read-only file system", FILES, "/usr/b", WRITE),
    ("tar: /usr/x: Cannot open: Read-only file system", FILES, "/usr/x", WRITE),
    ("/usr/bin/ld: cannot open output file /usr/x: Read-only file system", FILES, "/usr/x", WRITE),
    ("sed: couldn't open temporary file /usr/sedAb1: Read-only file system", FILES, "/usr/sedAb1", WRITE),
    ("fatal: could not create work tree dir '/usr/x': Read-only file system", FILES, "/usr/x", WRITE),
    ("cat: /root/x: Permission denied", FILES, "/root/x", CAPABILITIES),
    ("chown: changing ownership of '/usr/x': Operation not permitted", FILES, "/usr/x", CAPABILITIES),
    # Languages.
    ("OSError: [Errno 30] Read-only file system: '/x'", FILES, "/x", WRITE),
    ("OSError: [Errno 30] Read-only file system: b'/x y'", FILES, "/x y", WRITE),
    ("OSError: [Errno 30] Read-only file system: '/a' -> '/b'", FILES, "/a", WRITE),
    ("PermissionError: [Errno 13] Permission denied: '/etc/x'", FILES, "/etc/x", CAPABILITIES),
    ("Error: EROFS: read-only file system, open '/x'", FILES, "/x", WRITE),
    ("npm ERR! EROFS: read-only file system, mkdir '/usr/lib/node_modules'", FILES, "/usr/lib/node_modules", WRITE),
    ("2026/01/01 00:00:00 open /x: read-only file system", FILES, "/x", WRITE),
    ("\x1b[31mopen /x: read-only file system\x1b[0m", FILES, "/x", WRITE),
    # Rules of the policy.
    ("touch: cannot touch '/srv/kept/x': Read-only file system", FILES, "/srv/kept/x", "filesystem.deny_write"),
    ("bash: /srv/a/.git/hooks/x: Read-only file system", FILES, "/srv/a/.git/hooks/x", "protected names"),
    ("bash: line 1: .git/hooks/x: Read-only file system", FILES, ".git/hooks/x", "protected names"),
    ("touch: cannot touch '/usr/.git/x': Read-only file system", FILES, "/usr/.git/x", WRITE),
    ("bash: sub/x: Read-only file system", FILES, "sub/x", "filesystem.deny_write"),
    ("cat: /opt/keys/one: Permission denied", FILES, "/opt/keys/one", "filesystem.deny_read"),
    ("dd: error writing 'big': No space left on device", FILES, "big", "resource_limits.workspace_mb"),
    ("OSError: [Errno 28] No space left on device", FILES, "/workspace", "resource_limits.workspace_mb"),
    ("OSError: [Errno 27] File too large", FILES, "a file", "resource_limits.max_file_size_mb"),
    ("OSError: [Errno 24] Too many open files: '/tmp/7'", FILES, "/tmp/7", "resource_limits.max_open_files"),
    ("MemoryError", CALLS, "mmap", MEMORY),
    ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 8 GiB; MemoryError", CALLS, "mmap", MEMORY),
    ("bash: fork: Cannot allocate memory", CALLS, "mmap", MEMORY),
    ("OSError: [Errno 12] Cannot allocate memory", CALLS, "mmap", MEMORY),
    ("terminate called after throwing an instance of 'std::bad_alloc'", CALLS, "mmap", MEMORY),
    ("fatal error: runtime: out of memory", CALLS, "mmap", MEMORY),
    ("xargs: memory exhausted", CALLS, "mmap", MEMORY),
    # System calls.
    ("unshare: unshare failed: Operation not permitted", CALLS, "unshare", FILTER),
    ("mount: /mnt: permission denied.", CALLS, "mount", FILTER),
    ("mount: /mnt: must be superuser to use mount.", CALLS, "mount", FILTER),
    ("nsenter: reassociate to namespace failed: Operation not permitted", CALLS, "setns", FILTER),
    ("/usr/bin/strace: PTRACE_TRACEME: Operation not permitted", CALLS, "ptrace", FILTER),
    ("prog: ptrace(PTRACE_TRACEME): Operation not permitted", CALLS, "ptrace", FILTER),
    ("chroot: cannot change root directory to '/x': Operation not permitted", CALLS, "chroot", FILTER),
    ("ping: socket: Operation not permitted", CALLS, "socket", FILTER),
    # Network.
    ("curl: (6) Could not resolve host: example.com", NETWORK, "example.com", DOMAINS),
    ("fatal: unable to access 'https://a.example/': Could not resolve host: a.example", NETWORK, "a.example", DOMAINS),
    ("ssh: Could not resolve hostname a.example: Temporary failure in name resolution", NETWORK, "a.example", DOMAINS),
    ("wget: unable to resolve host address \u2018a.example\u2019", NETWORK, "a.example", DOMAINS),
    ("Resolving a.example (a.example)... failed: Temporary failure in name resolution.", NETWORK, "a.example", DOMAINS),
    ("ping: a.example: Temporary failure in name resolution", NETWORK, "a.example", DOMAINS),
    ("ping: a.example: Name or service not known", NETWORK, "a.example", DOMAINS),
    ("Error: getaddrinfo EAI_AGAIN a.example", NETWORK, "a.example", DOMAINS),
    ("Get \"http://a.example\": dial tcp: lookup a.example on 1.2.3.4:53: no", NETWORK, "a.example", DOMAINS),
    ("Failed to resolve 'a.example' ([Errno -3] Temporary failure in name resolution)", NETWORK, "a.example", DOMAINS),
    (
        "HTTPSConnectionPool(host='a.example', port=443): Max retries exceeded (Caused by NameResolutionError())",
        NETWORK, "a.example:443", DOMAINS,
    ),
    ("curl: (7) Failed to connect to 1.2.3.4 port 80: Couldn't connect to server", NETWORK, "1.2.3.4:80", DOMAINS),
    ("bash: line 1: /dev/tcp/1.2.3.4/80: Network is unreachable", NETWORK, "1.2.3.4:80", DOMAINS),
    (
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        NETWORK, "a name or address that was not reported", DOMAINS,
    ),
    ("OSError: [Errno 101] Network is unreachable", NETWORK, "a name or address that was not reported", DOMAINS),
]  # fmt: skip
NO_DENIALS = [
    "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
    "class MyMemoryErrors: pass",
    "",
    "bash: nope: command not found",
    "Permission denied",
    "PermissionError: [Errno 1] Operation not permitted",
    "bash: line 1: ./x.sh: Permission denied",
    "bash: line 1: /workspace/x.sh: Permission denied",
    "cat: /tmp/x: Permission denied",
    "cat: x: No such file or directory",
    "curl: (7) Failed to connect to 127.0.0.1 port 1 after 0 ms: Couldn't connect to server",
    "this says that a read-only file system is a fine thing",
]


def read(text: str | bytes, policy: ExecutionPolicy = LIMITED) -> tuple[Denial, ...]:
    words = LastWords()
    words.add(text if isinstance(text, bytes) else text.encode())
    return words.denials(policy)[0]


@pytest.mark.parametrize(("line", "kind", "target", "rule"), REPORTED)
def test_a_refusal_is_read(line: str, kind: DenialKind, target: str, rule: str) -> None:
    (denial,) = read(f"some words before\n{line}\nand after\n")
    assert (denial.kind, denial.target, denial.rule, denial.count) == (kind, target, rule, 1)
    assert denial.message.startswith("The program reported")


@pytest.mark.parametrize("line", NO_DENIALS)
def test_other_words_are_not(line: str) -> None:
    assert read(line + "\n") == ()


def test_what_has_no_limit_is_not_blamed_on_one() -> None:
    lines = [line for line, _, _, rule in REPORTED if rule.startswith("resource_limits")]
    assert len(lines) == 11
    assert read("\n".join(lines), ExecutionPolicy()) == ()


def test_where_there_is_a_network_its_own_guard_tells() -> None:
    policy = ExecutionPolicy(network=NetworkPolicy(allowed_domains=("b.example",)))
    assert [line for line, kind, _, _ in REPORTED if kind is NETWORK and read(line, policy)] == []


def test_who_named_the_host_in_another_line_is_not_told_twice() -> None:
    text = "bash: connect: Network is unreachable\nbash: line 1: /dev/tcp/1.2.3.4/80: Network is unreachable\n"
    assert [each.target for each in read(text)] == ["1.2.3.4:80"]


def test_the_same_is_counted_and_pieces_are_put_together() -> None:
    words = LastWords()
    for piece in (b"touch: cannot touch '/us", b"r/x': Read-only file sys", b"tem\n", b"bash: /usr/x: "):
        words.add(piece)
    words.add(b"Read-only file system\n")
    ((denial,), omitted) = words.denials(LIMITED)
    assert (denial.target, denial.count, omitted) == ("/usr/x", 2, 0)


def test_only_whole_lines_of_the_end_are_read() -> None:
    line = b"touch: cannot touch '/usr/%04d': Read-only file system\n"
    words = LastWords()
    for number in range(1000):
        words.add(line % number)
    denials, omitted = words.denials(LIMITED)
    whole = (MAX_READ_BYTES - 1) // len(line % 0)
    assert len(denials) + omitted == whole
    assert len(denials) == min(MAX_DENIALS, whole)
    assert denials[0].target == f"/usr/{1000 - whole:04d}"

    words.add(line[:-1] % 7 + b"x" * 2 * MAX_READ_BYTES)
    assert words.denials(LIMITED) == ((), 0)


def test_names_are_cut_and_cannot_steer_a_terminal() -> None:
    (denial,) = read(b"open /\x1b]0;title\x07\x00\xff" + b"a" * 500 + b": read-only file system\n")
    assert denial.target.isprintable()
    assert len(denial.target) <= MAX_TARGET_CHARACTERS


WORDS = st.sampled_from(
    ["Read-only file system", "permission denied", ": ", "'", "/", "host='", "\x1b[", "\n", "unshare", "'/x'"]
)  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=20)), max_size=60).map("".join))
def test_whatever_it_says_the_answer_is_bounded(text: str) -> None:
    denials = read(text)
    assert len(denials) <= MAX_DENIALS
    for denial in denials:
        assert len(denial.target) <= MAX_TARGET_CHARACTERS
        assert len(denial.message) <= MAX_MESSAGE_CHARACTERS
        assert denial.target.isprintable()


def test_many_rules_and_lines_take_no_long_either() -> None:
    entries = tuple(f"/a/{'b/' * 100}{number}" for number in range(256))
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(entries, (), entries))
    started = time.process_time()
    read("a: /: Read-only file system\n" * 400 + "a: /: permission denied\n" * 400, policy)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "piece", ["a: ", "''", "[(", "/ ", "lookup ", "could not resolve ", "\x1b[", ": name or ", "host='", "é", "a" * 7]
)
def test_no_text_takes_long(piece: str) -> None:
    text = (piece * MAX_READ_BYTES)[: MAX_READ_BYTES - 40] + "Read-only file system"
    # CPU time: a pattern that tries everything would take minutes of it.
    started = time.process_time()
    read(text)
    read(text.replace(" ", "\n"))
    assert time.process_time() - started < 5


def test_an_exit_gets_what_ended_it_and_what_was_said() -> None:
    before = ProcessExit(reason=TerminationReason.SIGNALED, exit_code=159, signal=31)
    assert [each.rule for each in LastWords().with_denials(before, LIMITED).denials] == [FILTER]
    quiet = ProcessExit(reason=TerminationReason.EXITED, exit_code=1)
    assert LastWords().with_denials(quiet, LIMITED) is quiet
    words = LastWords()
    words.add(b"bash: /x: Read-only file system\n")
    assert [each.target for each in words.with_denials(quiet, LIMITED).denials] == ["/x"]


@pytest.mark.parametrize(("grants", "rule"), [((".", "/tmp"), WRITE), ((".", "/srv"), "protected names")])
def test_a_relative_protected_name_is_one_where_the_host_is_granted(grants: tuple[str, ...], rule: str) -> None:
    words = LastWords()
    words.add(b"bash: line 1: .envrc: Read-only file system\n")
    found, _ = words.denials(ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=grants)))
    assert [denial.rule for denial in found] == [rule]
