"""What a git repository's configuration points git to: hooks that lie elsewhere, and further configuration. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_SECTION = re.compile(r"\s*\[\s*(?P<name>[-.\w]+)(?:\s+\"(?:[^\"\\]|\\.)*\")?\s*\]")
_VARIABLE = re.compile(r"\s*(?P<name>[A-Za-z][-A-Za-z0-9]*)\s*=\s*(?P<value>.*)")


def paths_of_config(text: str, *, folder: str, worktree: str) -> Iterator[str]:
    """Yield the absolute paths that git executes from, or reads as configuration, because this text says so.

    `core.hooksPath`, `include.path` and `includeIf.*.path` (git-config(1)); whether a condition holds does not matter.

    Args:
        text: of the file.
        folder: where the file lies, from which includes start.
        worktree: where hooks run, from which their path starts.
    """
    found: list[tuple[str, str]] = []
    section = ""
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        header = _SECTION.match(line)
        if header is not None:
            section = header["name"].split(".")[0].lower()
            line = line[header.end() :]
        variable = _VARIABLE.match(line)
        if variable is not None:
            found.append((f"{section}.{variable['name'].lower()}", _value(variable["value"])))
    for name, value in found:
        if name == "core.worktree":
            worktree = os.path.join(folder, value)
    for name, value in found:
        start = {"core.hookspath": worktree, "include.path": folder, "includeif.path": folder}.get(name)
        if start is not None and value:
            yield os.path.normpath(os.path.join(start, os.path.expanduser(value)))


def _value(text: str) -> str:
    """A value without its quotes, escapes and comment."""
    pieces = []
    quoted = False
    position = 0
    while position < len(text):
        letter = text[position]
        if letter == "\\" and position + 1 < len(text):
            position += 1
            pieces.append({"n": "\n", "t": "\t", "b": "\b"}.get(text[position], text[position]))
        elif letter == '"':
            quoted = not quoted
        elif letter in "#;" and not quoted:
            break
        else:
            pieces.append(letter)
        position += 1
    return "".join(pieces).strip()
