"""The table of attacks as Markdown, for docs/attacks.md."""

from __future__ import annotations

from sandbox_adapters.runners.controls import Control
from tests.integration.attacks.cases import CASES, Case, Grant

_NONE_NEEDED = "a folder that shows it is granted instead"


def markdown() -> str:
    """Return one table for each subject."""
    lines: list[str] = []
    for subject in dict.fromkeys(case.subject for case in CASES):
        lines += [f"**{subject.capitalize()}**", ""]
        lines += ["| attack | held by | gets through once this is gone | under an unprivileged server |"]
        lines += ["| --- | --- | --- | --- |"]
        for case in CASES:
            if case.subject == subject:
                name = case.attack.replace("_", " ")
                lines.append(f"| {name} | {case.held_by} | {_gone(case, root=True)} | {_as_user(case)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _gone(case: Case, *, root: bool) -> str:
    if case.bare:
        return "the whole sandbox: bwrap cannot go without it"
    if case.grant is Grant.INSTEAD:
        return _NONE_NEEDED
    return ", or ".join(_together(controls) for controls in case.sets(root=root))


def _together(controls: frozenset[Control]) -> str:
    named = " and ".join(f"`{control}`" for control in sorted(controls))
    return f"{named}, together; any one is enough" if len(controls) > 1 else named


def _as_user(case: Case) -> str:
    if case.off_as_user is None:
        return f"nothing to take away: {case.why_not}"
    told = "the same" if case.off_as_user == () else _gone(case, root=False)
    return f"{told}; not held where the user may use no cgroup" if case.cgroup else told
