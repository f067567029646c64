"""What a spare sandbox, waiting in a shell, is told so that it becomes the command. Pure.

The shell runs SPARE_ARGV and reads its standard input, a pipe, to the end: the script below replaces it by the command.
"""

from __future__ import annotations

import os
import shlex

from sandbox_core.domain.command import Command
from sandbox_core.domain.policy import WORKSPACE, inside_sandbox

SPARE_ARGV = ("/bin/sh", "-c", ". /proc/self/fd/0")
"""Opening the pipe anew leaves nothing of it behind when the shell executes the command."""

MAX_SCRIPT_BYTES = 32 * 1024
"""Always fits an empty pipe (pipe(7)), so that handing over never waits."""

_OF_THE_SHELL = frozenset(
    {
        "IFS", "LINENO", "OPTARG", "OPTIND", "PATH", "PPID", "PS4", "PWD", "UID", "EUID",
        "_", "DIRSTACK", "EPOCHREALTIME", "EPOCHSECONDS", "FUNCNAME", "GROUPS", "HISTCMD", "PIPESTATUS", "RANDOM",
        "SECONDS", "SHELLOPTS", "SHLVL", "SRANDOM",
    }
)  # fmt: skip
"""Variables that mean something to the shell while it reads the script, or that it does not let itself be given. From
`_` on they are bash's, which is /bin/sh on some systems."""
_OF_BASH = "BASH"
"""What the names of more of them begin with."""


def script_for(command: Command, shell: str, search_path: str) -> bytes | None:
    """Return the script that makes a spare run `command`; None when only a start of its own is the same.

    That is so for a command with standard input, a working directory of its own, variables that the waiting shell
    would take for itself, a program that the shell would find otherwise than execvp(3), and for long ones.
    """
    if command.stdin or command.interactive or any(map(_is_of_the_shell, command.environment)):
        return None
    if command.working_directory is not None and inside_sandbox(command.working_directory) != WORKSPACE:
        return None
    if command.shell is not None:
        words = [shell, "-c", "--", command.shell]
    elif command.argv is not None and _is_program(command.argv[0], search_path):
        words = list(command.argv)
    else:
        return None
    lines = [f"export {name}={shlex.quote(value)}" for name, value in command.environment.items()]
    lines.append(f"exec {shlex.join(words)} </dev/null\n")
    script = "\n".join(lines).encode()
    return script if len(script) <= MAX_SCRIPT_BYTES else None


def _is_of_the_shell(name: str) -> bool:
    return name in _OF_THE_SHELL or name.startswith(_OF_BASH)


def _is_program(name: str, search_path: str) -> bool:
    """True when the host's /usr, which the sandbox shows, has this program where the sandbox would look for it."""
    if "/" in name:
        return name.startswith("/usr/") and "/../" not in name and _executable(name)
    for directory in search_path.split(":"):
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return os.path.realpath(path).startswith("/usr/") and _executable(path)
    return False


def _executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK) and bool(os.stat(path).st_mode & 0o001)
