"""Denials: what the sandbox refused while an execution ran, so that a caller can understand and ask for less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_DENIALS = 100
"""Different denials that are kept of one execution; further ones are only counted."""

MAX_TARGET_CHARACTERS = 256
MAX_RULE_CHARACTERS = 256
MAX_MESSAGE_CHARACTERS = 512


class DenialKind(StrEnum):
    """What was refused."""

    NETWORK = "network"
    FILESYSTEM = "filesystem"
    SYSCALL = "syscall"


@dataclass(frozen=True, slots=True)
class Denial:
    """Something that the program tried and was refused.

    Args:
        kind: what was refused.
        target: `host:port`, a path, or the name of a system call.
        rule: the policy field or the wall that refused it, for example `network.allowed_domains`.
        message: one sentence for people.
        count: how often the same was refused.
    """

    kind: DenialKind
    target: str
    rule: str
    message: str
    count: int = 1


def bounded(denials: Iterable[Denial]) -> tuple[tuple[Denial, ...], int]:
    """Return what is kept of `denials`, in order of their first refusal, and how many refusals are not.

    The same kind, target and rule becomes one denial with the counts added up. Texts are cut to the bounds of this
    module, and what cannot be printed is escaped: the program inside chose them.
    """
    kept: dict[tuple[DenialKind, str, str], Denial] = {}
    omitted = 0
    for denial in denials:
        target, rule = _shown(denial.target, MAX_TARGET_CHARACTERS), _shown(denial.rule, MAX_RULE_CHARACTERS)
        key = (denial.kind, target, rule)
        if key in kept:
            kept[key] = replace(kept[key], count=kept[key].count + denial.count)
        elif len(kept) < MAX_DENIALS:
            message = _shown(denial.message, MAX_MESSAGE_CHARACTERS)
            kept[key] = Denial(denial.kind, target, rule, message, denial.count)
        else:
            omitted += denial.count
    return tuple(kept.values()), omitted


def _shown(text: str, limit: int) -> str:
    text = text[:limit]
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
        )
    return text[:limit]
