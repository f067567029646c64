"""From what the kernel and bwrap say to a ProcessExit. Pure."""

from __future__ import annotations

import os
import re
import resource
import signal
from dataclasses import dataclass

from sandbox_core.domain.command import Command
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ResourceLimits
from sandbox_core.ports.runner import LimitHit, ProcessExit

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""What a shell exits with when a program does not exist, or exists but cannot be executed (POSIX, sh, 2.8.2)."""

_MIB = 1 << 20
_SIGNAL_BASE, _LAST_SIGNAL = 128, 64
_BWRAP_PREFIX = "bwrap: "
_NO_SUCH_FILE = "No such file or directory"
_CHDIR = re.compile(r"bwrap: Can't chdir to (?P<path>.*): (?P<reason>[^:]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree used, as wait4(2) told."""

    user_seconds: float | None = None
    system_seconds: float | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FailedStart:
    """A command that never ran. `stderr` replaces what bwrap printed."""

    exit: ProcessExit
    stderr: bytes


def exit_of_wait_status(status: int, limits: ResourceLimits, usage: Usage, *, shell_codes: bool) -> ProcessExit:
    """Map a wait status (waitpid(2)).

    `shell_codes`: the code was passed on by a parent that reports a signal as 128 + its number, as bwrap and
    shells do. A program that exits 137 by itself then reads like one that SIGKILL ended.
    """
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else None
    if number is None and shell_codes and _SIGNAL_BASE < code <= _SIGNAL_BASE + _LAST_SIGNAL:
        number = code - _SIGNAL_BASE
    reason, message = TerminationReason.EXITED, None
    hits: tuple[LimitHit, ...] = ()
    if number is not None:
        reason, message, hits = _signal_reason(number, limits, usage)
        code = _SIGNAL_BASE + number
    return ProcessExit(
        reason=reason,
        exit_code=code,
        signal=number,
        message=message,
        user_cpu_seconds=usage.user_seconds,
        system_cpu_seconds=usage.system_seconds,
        max_rss_bytes=usage.max_rss_bytes,
        limits_hit=hits,
    )


def failed_start(command: Command, printed: str) -> FailedStart:
    """Map what bwrap printed about a command that it did not execute."""
    text = printed.strip()
    program = (command.argv or ("",))[0]
    execution = f"{_BWRAP_PREFIX}execvp {program}: "
    if command.argv and text.startswith(execution):
        return cannot_execute(program, text.removeprefix(execution))
    if chdir := _CHDIR.fullmatch(text):
        return bad_directory(
            command, chdir["reason"], "The workspace is private and starts empty; leave working_directory out, or "
            "create the directory in the command.",
        )  # fmt: skip
    message = text.removeprefix(_BWRAP_PREFIX) or "bwrap ended without a word"
    return _never_ran(f"The sandbox could not be set up: {message}.")


def cannot_execute(program: str, reason: str) -> FailedStart:
    """The exit of a program that execve(2) refused, with the one line that names it. `reason` is the errno's text."""
    if reason == _NO_SUCH_FILE:
        code, line = NOT_FOUND, f"sandbox: {program}: command not found\n"
    else:
        code, line = NOT_EXECUTABLE, f"sandbox: {program}: cannot execute ({reason})\n"
    return FailedStart(ProcessExit(reason=TerminationReason.EXITED, exit_code=code), line.encode())


def bad_directory(command: Command, reason: str, advice: str) -> FailedStart:
    """The exit of a command whose working directory cannot be entered."""
    return _never_ran(f"The working directory {command.working_directory!r} cannot be entered: {reason}. {advice}")


def _never_ran(message: str) -> FailedStart:
    return FailedStart(ProcessExit(reason=TerminationReason.SETUP_FAILED, message=message), b"")


def _signal_reason(
    number: int, limits: ResourceLimits, usage: Usage
) -> tuple[TerminationReason, str | None, tuple[LimitHit, ...]]:
    cpu_limit, file_limit = limits.max_cpu_seconds, limits.max_file_size_mb
    used = (usage.user_seconds or 0.0) + (usage.system_seconds or 0.0)
    if cpu_limit is not None and (number == signal.SIGXCPU or (number == signal.SIGKILL and used >= cpu_limit)):
        hit = LimitHit("max_cpu_seconds", cpu_limit, round(used, 3))
        return TerminationReason.CPU_TIME, f"Ended at its limit of {cpu_limit} s of CPU time.", (hit,)
    if file_limit is not None and number == signal.SIGXFSZ:
        message = f"Ended by SIGXFSZ: a file would have passed {file_limit} MiB."
        return TerminationReason.SIGNALED, message, (LimitHit("max_file_size_mb", file_limit),)
    return TerminationReason.SIGNALED, None, ()


def rlimits(limits: ResourceLimits) -> list[tuple[int, int, int]]:
    """Return (resource, soft, hard) for the limits that setrlimit(2) holds, save the number of processes.

    RLIMIT_DATA comes last: nothing that allocates should follow it.
    """
    found = [(resource.RLIMIT_CORE, 0, 0)]
    if limits.max_open_files is not None:
        found.append(bounded(resource.RLIMIT_NOFILE, limits.max_open_files, limits.max_open_files))
    if limits.max_file_size_mb is not None:
        size = limits.max_file_size_mb * _MIB
        found.append(bounded(resource.RLIMIT_FSIZE, size, size))
    if limits.max_cpu_seconds is not None:
        found.append(bounded(resource.RLIMIT_CPU, limits.max_cpu_seconds, limits.max_cpu_seconds + 1))
    if limits.max_memory_mb is not None:
        size = limits.max_memory_mb * _MIB
        found.append(bounded(resource.RLIMIT_DATA, size, size))
    return found


def bounded(which: int, soft: int, hard: int) -> tuple[int, int, int]:
    """Return a limit that this process may set: not over its own hard limit, which is as good when it is lower.

    Passing that takes CAP_SYS_RESOURCE (setrlimit(2)), which root in a container does not have either.
    """
    _, present = resource.getrlimit(which)
    if present != resource.RLIM_INFINITY:
        soft, hard = min(soft, present), min(hard, present)
    return which, soft, hard
