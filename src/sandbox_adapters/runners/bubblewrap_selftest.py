"""The start-up self-test: run a command with the full options and look at what came out, from both sides."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Protocol

import anyio

from sandbox_adapters.runners.child.kernel import children
from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import InputClosed, SandboxError
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.policy import ExecutionPolicy, ResourceLimits
from sandbox_core.ports.runner import Launch, Process, ProcessExit, Stream

_SECONDS = 30
"""Much more than it takes: a machine is busiest when servers start, and one that cannot isolate says so at once."""
_WORKSPACE_MB = 1
_MARK = "@@"
_SCRIPT = """
echo ready
IFS= read -r go
cat /proc/self/status; echo @@
cat /proc/net/dev; echo @@
echo /proc/[0-9]*; echo @@
ls -l /proc/self/ns; echo @@
ls -l /proc/$$/fd; echo @@
ls -A /proc/1; echo @@
cat /proc/mounts; echo @@
(: > /usr/self-test) 2>/dev/null && echo usr
(: > /self-test) 2>/dev/null && echo root
(: > /etc/self-test) 2>/dev/null && echo etc
(: > /dev/self-test) 2>/dev/null && echo dev
echo @@
pwd; echo @@
head -c 2097152 /dev/zero 2>/dev/null > big; echo $?; echo @@
echo 1 > /dev/stderr && echo reopened
"""
_MANY_PROCESSES = 20
_NAMESPACES = ("user", "pid", "ipc", "uts", "net", "mnt", "cgroup")
_HIGHEST_EXPECTED_FD = 2


class SelfTestFailed(Exception):
    """The sandbox did not hold what it must; the message says what."""


class Starter(Protocol):
    """How the self-test starts a command."""

    def __call__(self, launch: Launch) -> AbstractAsyncContextManager[Process]: ...


async def self_test(start: Starter, *, launcher_pid: int) -> None:
    """Raise SelfTestFailed unless a command started by `start` is isolated as promised."""
    policy = ExecutionPolicy(
        resource_limits=ResourceLimits(
            workspace_mb=_WORKSPACE_MB, max_processes=64, max_open_files=256, max_memory_mb=512, max_cpu_seconds=10
        )
    )
    launch = Launch(ExecutionId("self-test"), Command(argv=("sh", "-c", _SCRIPT), interactive=True), policy)
    try:
        with anyio.fail_after(_SECONDS):
            async with start(launch) as process:
                text, errors, seen_uids, exit_ = await _observe(process, launcher_pid)
    except TimeoutError:
        raise SelfTestFailed(f"a command does not end within {_SECONDS} s") from None
    except (SandboxError, OSError) as error:
        raise SelfTestFailed(str(error)) from error
    if exit_.exit_code != 0:
        raise SelfTestFailed(exit_.message or f"a command exits {exit_.exit_code}: {(text + errors).strip()[-300:]}")
    problems = _problems(text.split(_MARK), seen_uids)
    if problems:
        raise SelfTestFailed("; ".join(problems))


async def _observe(process: Process, launcher_pid: int) -> tuple[str, str, set[int], ProcessExit]:
    """Return what each stream had, the kernel uids of the tree while it waits for its input, and its exit."""
    pieces: list[bytes] = []
    errors: list[bytes] = []
    uids: set[int] = set()

    async def read(stream: Stream, to: list[bytes]) -> None:
        while data := await process.read(stream, 65536):
            to.append(data)

    async with anyio.create_task_group() as tasks:
        while not pieces:
            pieces.append(await process.read(Stream.STDOUT, 65536) or b"ended")
        tree = [launcher_pid]
        for pid in tree:
            tree += [child for child in children(pid) if _program(child) != _program(launcher_pid)]
        uids.update(*(_kernel_uids(pid) for pid in tree[1:]))
        tasks.start_soon(read, Stream.STDOUT, pieces)
        tasks.start_soon(read, Stream.STDERR, errors)
        with suppress(InputClosed):
            await process.send_stdin(b"go\n")
        exit_ = await process.wait()
    text, complaints = (b"".join(each).decode(errors="replace") for each in (pieces, errors))
    return text, complaints, uids, exit_


def _program(pid: int) -> str | None:
    """The file that a process executes. The launcher's own is that of children that still wait to become bwrap."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def _kernel_uids(pid: int) -> set[int]:
    """The real, effective, saved and file-system uid of a process; empty when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return set()
    return {int(uid) for uid in status.partition("\nUid:")[2].split("\n")[0].split()}


def _shared(listed: str) -> list[str]:
    """Return the names of the namespaces that are this process's too, or not in the list that a command printed."""
    theirs = dict(line.split()[-3::2] for line in listed.splitlines() if " -> " in line)
    return [name for name in _NAMESPACES if theirs.get(name) in (None, os.readlink(f"/proc/self/ns/{name}"))]


def _problems(parts: list[str], uids: set[int]) -> list[str]:
    if len(parts) != _SCRIPT.count(_MARK) + 1:
        return ["its output is cut off"]
    status, network, processes, namespaces, descriptors, first_process, mounts, written, directory, quota, reopened = (
        parts
    )
    found = []
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if fields.get("Uid", "").split()[:1] != ["1000"]:
        found.append("the command is not uid 1000")
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if int(fields.get(name, "1"), 16) != 0:
            found.append(f"the command has capabilities ({name})")
    if fields.get("NoNewPrivs", "").strip() != "1":
        found.append("no_new_privs is not set")
    if fields.get("Seccomp", "").strip() != "2":
        found.append("no system call filter is in force")
    interfaces = [line.split(":")[0].strip() for line in network.splitlines() if ":" in line]
    if interfaces != ["lo"]:
        found.append(f"it has network interfaces {', '.join(interfaces) or 'unknown'}")
    # Its own number alone, unless its /proc is that of a namespace further out (proc_pid_status(5)). In a container
    # the host's processes may be few.
    if not 0 < len(processes.split()) < _MANY_PROCESSES or len(fields.get("NSpid", "").split()) != 1:
        found.append("it sees the processes of the host")
    for name in _shared(namespaces):
        found.append(f"it is in the {name} namespace of the host")
    open_files = [int(line.split(" -> ")[0].split()[-1]) for line in descriptors.splitlines() if " -> " in line]
    if not open_files or max(open_files) > _HIGHEST_EXPECTED_FD:
        found.append(f"it inherits descriptors {open_files}")
    if first_process.strip():
        found.append("it sees its pid 1, which is bwrap")
    points = {line.split()[1]: line.split()[3].split(",") for line in mounts.splitlines() if line.count(" ") > 2}
    for point in ("/", "/usr", "/etc", "/proc", "/dev"):
        if "ro" not in points.get(point, ()):
            found.append(f"{point} is not mounted read-only")
    if written.split():
        found.append(f"it can write to {', '.join(written.split())}")
    if directory.strip() != "/workspace":
        found.append("it does not start in /workspace")
    if quota.strip() != "1":
        found.append("the workspace has no size limit")
    if "reopened" not in reopened:
        found.append("it cannot open /dev/stderr")
    if os.geteuid() == 0 and (0 in uids or not uids):
        found.append("it runs with the kernel's uid 0")
    return found
