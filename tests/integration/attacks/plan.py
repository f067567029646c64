"""Which sandboxes are needed to try every case of the table, and what is to be expected of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.integration.attacks.cases import CASES, Case, Grant
from tests.integration.attacks.rig import BARE, Batch

COLD, SPARE, GRANTS = "cold", "spare", "grants"


def all_on(case: Case, way: str) -> str:
    """Return the name of the batch in which a case meets every control, in a sandbox started in one of two ways."""
    return _name((), case.grant is Grant.ALWAYS, case.limits.items(), way)


def ways(case: Case) -> tuple[str, ...]:
    """Return the ways to start a sandbox for a case: with limits of their own all are made in one."""
    return (COLD,) if case.limits else (COLD, SPARE, GRANTS)


def off(case: Case, without: Iterable[str]) -> str:
    """Return the name of the batch in which a case meets everything but some controls."""
    return _name(without, case.grant is not Grant.NEVER, case.limits.items(), COLD)


def without_parts(case: Case, *, root: bool) -> list[frozenset[str]]:
    """Return the sets that leave only one of several controls standing, or for two, take one away."""
    found = []
    for controls in case.sets(root=root):
        found += [frozenset({one}) for one in sorted(controls)] if len(controls) > 1 else []
    return list(dict.fromkeys(found))


def batches(*, root: bool) -> list[Batch]:
    """Return every batch for one kind of server."""
    wanted: dict[str, list[str]] = defaultdict(list)
    made: dict[str, Batch] = {}

    def add(case: Case, name: str, without: Iterable[str] = (), *, granted: bool, way: str = COLD) -> None:
        wanted[name].append(case.attack)
        made[name] = Batch(name, wanted[name], sorted(without), granted, way == SPARE, way == GRANTS, dict(case.limits))

    for case in CASES:
        for way in ways(case):
            add(case, all_on(case, way), granted=case.grant is Grant.ALWAYS, way=way)
        if case.bare or case.machine:
            add(case, off(case, [BARE]), [BARE], granted=case.grant is not Grant.NEVER)
        if case.grant is Grant.INSTEAD:
            add(case, off(case, ()), granted=True)
        for without in (*case.sets(root=root), *without_parts(case, root=root)):
            add(case, off(case, without), without, granted=case.grant is not Grant.NEVER)
    return list(made.values())


def gone(case: Case, *, root: bool) -> list[frozenset[str]]:
    """Return each set of what is taken away so that a case must get through."""
    if case.bare:
        return [frozenset({BARE})]
    if case.grant is Grant.INSTEAD:
        return [frozenset()]
    return [frozenset(controls) for controls in case.sets(root=root)]


def _name(without: Iterable[str], granted: bool, limits: Iterable[tuple[str, int]], way: str) -> str:
    parts: Sequence[str] = (
        "without " + ("+".join(sorted(without)) or "nothing"),
        "granted" if granted else "",
        ",".join(f"{name}={value}" for name, value in sorted(limits)),
        way,
    )
    return "; ".join(filter(None, parts))
