"""What to run: argv or shell text, where, with which environment and input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sandbox_core.domain.errors import InvalidArgument

MAX_COMMAND_BYTES = 128 * 1024 - 1
"""Linux refuses a single argument of 128 KiB or more (MAX_ARG_STRLEN, execve(2)); we hold all of argv to it."""

MAX_ARGUMENTS = 4096
MAX_ENVIRONMENT_BYTES = 128 * 1024
MAX_VARIABLES = 1024
"""With MAX_ARGUMENTS within what bwrap takes: 9000 items, of which a variable needs three."""

MAX_STDIN_BYTES = 1024 * 1024
MAX_WORKING_DIRECTORY_BYTES = 4095
"""PATH_MAX less its NUL (limits.h)."""

_LARGE_PROGRAMS = ". Send large programs as stdin, e.g. `python3 -`"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Exactly one of `argv` (run as it is) and `shell` (text for the runner's shell) is set.

    Args:
        argv: program and arguments; the program is looked up on the sandbox's PATH.
        shell: text for `bash -c` (or `sh -c` where there is no bash).
        working_directory: where it starts; None is the runner's workspace. Relative paths start at the workspace.
        environment: variables added to the runner's own small set.
        stdin: bytes given as standard input.
        interactive: keep standard input open after `stdin` for `send_stdin`.

    Raises:
        InvalidArgument: empty command, what is not text, NUL bytes, or a size over the limits of this module.
    """

    argv: tuple[str, ...] | None = None
    shell: str | None = None
    working_directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    interactive: bool = False

    def __post_init__(self) -> None:
        if (self.argv is None) == (self.shell is None):
            raise InvalidArgument("command", "give either shell text or a list of arguments")
        if self.shell is not None:
            _check_type("command", self.shell, "text, or a list of text")
            if not self.shell.strip():
                raise InvalidArgument("command", "is empty; give the text to run")
            _check_text("command", self.shell, MAX_COMMAND_BYTES, advice=_LARGE_PROGRAMS)
        if self.argv is not None:
            for item in self.argv:
                _check_type("command", item, "text, or a list of text")
            if not self.argv or not self.argv[0]:
                raise InvalidArgument("command", "is empty; the first item must name a program")
            if len(self.argv) > MAX_ARGUMENTS:
                problem = f"has {len(self.argv)} items; at most {MAX_ARGUMENTS} are taken. Send long lists as stdin"
                raise InvalidArgument("command", f"{problem}, e.g. to `xargs`")
            _check_text(
                "command", "".join(self.argv), MAX_COMMAND_BYTES, more_bytes=len(self.argv), advice=_LARGE_PROGRAMS
            )
        if self.working_directory is not None:
            _check_type("working_directory", self.working_directory, "text")
            if not self.working_directory:
                raise InvalidArgument("working_directory", "is empty; leave it out for the workspace")
            _check_text("working_directory", self.working_directory, MAX_WORKING_DIRECTORY_BYTES)
        if len(self.environment) > MAX_VARIABLES:
            problem = f"has {len(self.environment)} variables; at most {MAX_VARIABLES} are taken"
            raise InvalidArgument("environment", problem)
        size = 0
        for name, value in self.environment.items():
            _check_type("environment", name, "a mapping of text")
            _check_type(f"environment.{name[:64]}", value, "text")
            if not _VARIABLE.fullmatch(name):
                raise InvalidArgument("environment", f"{name[:64]!r} is not a variable name (letters, digits, _)")
            _check_text(f"environment.{name[:64]}", value, MAX_COMMAND_BYTES, more_bytes=len(name) + 1)
            size += len(name) + len(value.encode("utf-8", "surrogateescape")) + 2
        if size > MAX_ENVIRONMENT_BYTES:
            raise InvalidArgument("environment", f"is {size} bytes; at most {MAX_ENVIRONMENT_BYTES} are taken")
        if not isinstance(self.interactive, bool):
            raise InvalidArgument("interactive", "must be true or false")
        if len(self.stdin) > MAX_STDIN_BYTES:
            raise InvalidArgument(
                "stdin", f"is {len(self.stdin)} bytes; at most {MAX_STDIN_BYTES} are taken, send more with send_stdin"
            )

    @property
    def text(self) -> str:
        """The command as one line for people: shell text as given, argv joined by spaces."""
        return self.shell if self.shell is not None else " ".join(self.argv or ())


def _check_type(name: str, value: object, wanted: str) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(name, f"must be {wanted}")


def _check_text(name: str, text: str, limit_bytes: int, *, more_bytes: int = 0, advice: str = "") -> None:
    """Raise InvalidArgument unless `text`, with `more_bytes` that go beside it, can be passed to a program."""
    if "\0" in text:
        raise InvalidArgument(name, "contains a NUL byte, which no program can receive as an argument")
    try:
        size = len(text.encode()) + more_bytes
    except UnicodeEncodeError:
        raise InvalidArgument(name, "contains half a surrogate pair, which is not text") from None
    if size > limit_bytes:
        raise InvalidArgument(name, f"is {size} bytes; at most {limit_bytes} are taken{advice}")
