"""Absolute paths with `*`, `?` and `[...]`, each within one name, and `**` for any number of names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

WILDCARD = re.compile(r"[*?\[{]")


class PathPatterns:
    """Some patterns, each of which also stands for itself, letter by letter.

    Patterns and paths may come from somebody hostile: a match takes at most the product of their lengths. One over all
    names would not, so each name is matched alone, by what `fnmatch.translate` makes of it without backtracking.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._literal: set[str] = set()
        self._parts: list[tuple[str, list[re.Pattern[str] | None]]] = []
        for pattern in patterns:
            self._literal.add(pattern)
            wildcard = WILDCARD.search(pattern)
            if wildcard is not None:
                parts = [None if part == "**" else re.compile(fnmatch.translate(part)) for part in pattern.split("/")]
                self._parts.append((pattern[: wildcard.start()].rpartition("/")[0], parts))

    def __bool__(self) -> bool:
        return bool(self._literal)

    def match(self, path: str) -> bool:
        """True when a pattern stands for this path."""
        if path in self._literal:
            return True
        names: list[str] | None = None
        for prefix, parts in self._parts:
            if path.startswith(prefix):
                names = path.split("/") if names is None else names
                if _match(parts, names):
                    return True
        return False

    def covers(self, path: str) -> bool:
        """True when a pattern stands for this path or for one around it; takes no longer than `match`."""
        if any(f"{path}/".startswith(f"{literal.rstrip('/')}/") for literal in self._literal):
            return True
        names = path.split("/")
        return any(path.startswith(prefix) and _match_beginning(parts, names) for prefix, parts in self._parts)


def _match_beginning(parts: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Match name by name until all parts are used up. Keeps every number of parts that may be by now."""
    used = _past_stars(parts, {0})
    for name in names:
        if len(parts) in used:
            return True
        moved = set()
        for part in used:
            pattern = parts[part]
            if pattern is None:
                moved.add(part)
            elif pattern.match(name):
                moved.add(part + 1)
        used = _past_stars(parts, moved)
    return len(parts) in used


def _past_stars(parts: list[re.Pattern[str] | None], used: set[int]) -> set[int]:
    """Add what a `**` that stands for no name leads to; each is added once, however many follow each other."""
    for part in tuple(used):
        following = part
        while following < len(parts) and parts[following] is None and following + 1 not in used:
            following += 1
            used.add(following)
    return used


def _match(parts: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Match name by name; what the last `**` stands for grows by one name when something after it does not fit."""
    part = name = 0
    resume_part, resume_name = -1, 0
    while name < len(names):
        pattern = parts[part] if part < len(parts) else None
        if part < len(parts) and pattern is None:
            resume_part, resume_name = part + 1, name
            part += 1
        elif pattern is not None and pattern.match(names[name]):
            part += 1
            name += 1
        elif resume_part >= 0:
            resume_name += 1
            part, name = resume_part, resume_name
        else:
            return False
    return all(pattern is None for pattern in parts[part:])
