"""What the sandbox refused, as fields for programs and as few words for people and models."""

from __future__ import annotations

from typing import Any

from sandbox_core.domain.denial import Denial
from sandbox_core.domain.outcome import Outcome

SHOWN_DENIALS = 3
"""How many the text of a reply names; all that were kept are in the fields."""

_SHOWN_TARGET_CHARACTERS = 80


def denial_fields(outcome: Outcome | None) -> dict[str, Any]:
    """Return `denials`, the first refusal first, and `denials_omitted` unless that is 0."""
    if outcome is None:
        return {"denials": []}
    fields: dict[str, Any] = {
        "denials": [
            {
                "kind": denial.kind.value,
                "target": denial.target,
                "rule": denial.rule,
                "message": denial.message,
                "count": denial.count,
            }
            for denial in outcome.denials
        ]
    }
    if outcome.denials_omitted:
        fields["denials_omitted"] = outcome.denials_omitted
    return fields


def denials_line(outcome: Outcome | None) -> str:
    """Return one line in brackets that names the first few refusals and counts the others; "" without any."""
    if outcome is None or not (outcome.denials or outcome.denials_omitted):
        return ""
    shown = [denial_words(denial) for denial in outcome.denials[:SHOWN_DENIALS]]
    if len(outcome.denials) == 1 and not outcome.denials_omitted:
        shown[0] += f": {reason_words(outcome.denials[0]).rstrip('.')}"
    more = others_words(outcome, SHOWN_DENIALS)
    return f"[refused: {'; '.join([*shown, more] if more else shown)}]"


def denial_words(denial: Denial) -> str:
    """Return `network example.com:443 (network.allowed_domains)`, with how often when more than once."""
    target = denial.target
    if len(target) > _SHOWN_TARGET_CHARACTERS:
        target = target[: _SHOWN_TARGET_CHARACTERS - 1] + "…"
    often = f", {denial.count} times" if denial.count > 1 else ""
    return f"{denial.kind.value} {target} ({denial.rule}{often})"


def reason_words(denial: Denial) -> str:
    """Return the message, without the target where it begins with that."""
    return denial.message.removeprefix(f"{denial.target} was refused: ")


def others_words(outcome: Outcome, shown: int) -> str:
    """Return how many refusals are not among the `shown` first denials; "" for none."""
    more = sum(denial.count for denial in outcome.denials[shown:]) + outcome.denials_omitted
    return f"{more} more" if more else ""
