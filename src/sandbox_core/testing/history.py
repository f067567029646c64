"""The checker of what a fleet did, after faults: from what was submitted, what was stored, and what really started.

histories = [await history_of(store, execution_id) for execution_id in submitted]
verdict = judge(submitted, histories)
assert not verdict.faults, verdict.faults
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_core.domain.events import EventKind
from sandbox_core.domain.ids import ExecutionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import StateStore

_END_OF = {
    ExecutionStatus.COMPLETED: EventKind.EXIT,
    ExecutionStatus.FAILED: EventKind.ERROR,
    ExecutionStatus.TIMEOUT: EventKind.TIMEOUT,
    ExecutionStatus.CANCELLED: EventKind.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class History:
    """What is stored of one execution: its status, why it ended, and the number and kind of every event, in order."""

    execution_id: str
    status: ExecutionStatus
    reason: str | None
    events: tuple[tuple[int, EventKind], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `judge` found. `faults` is empty when every promise was kept, else one sentence for each breach."""

    submitted: int
    events: int
    ended: Mapping[str, int] = field(default_factory=dict)
    """Reason -> how many ended for it."""
    started: int | None = None
    """How many programs really started, where there is a witness."""
    faults: tuple[str, ...] = ()


def log_faults(events: Iterable[tuple[int, str]], *, ended: bool = True) -> list[str]:
    """Return what is wrong with a log: holes, duplicates, no terminal event, several, or one that is not the last.

    `events` are numbers and kinds in the order in which they were read. A log that has not `ended` has no terminal one.
    """
    found = [(number, EventKind(kind)) for number, kind in events]
    faults = []
    numbers = [number for number, _ in found]
    if numbers != list(range(1, len(found) + 1)):
        faults.append(f"its events are numbered {_shown(numbers)}, not 1 to {len(found)}")
    terminal = [index for index, (_, kind) in enumerate(found) if kind.is_terminal]
    if terminal != ([len(found) - 1] if ended else []):
        faults.append(f"its events are {_shown([kind.value for _, kind in found])}")
    attempts = [0]
    for _, kind in found:
        if kind is EventKind.RETRY:
            attempts.append(0)
        attempts[-1] += kind is EventKind.READY
    if max(attempts) > 1:
        faults.append("it was made ready more than once")
    return faults


def judge(
    submitted: Sequence[str], histories: Iterable[History], *, starts: Mapping[str, int] | None = None
) -> Verdict:
    """Check that each execution started at most once and has one end, that none is forgotten, and that counts match.

    A `retry_safe` one may start once more for each event of its log that says so.

    Args:
        submitted: the ids that were accepted, each once.
        histories: what is stored of every execution that there is.
        starts: execution id -> how often its program really began, from a witness outside the system (for example a
            file that the programs write to); None where there is none.
    """
    faults = [f"{id_}: its id was given {count} times" for id_, count in Counter(submitted).items() if count > 1]
    known: dict[str, History] = {}
    for history in histories:
        if history.execution_id in known:
            faults.append(f"{history.execution_id}: it is stored twice")
        known[history.execution_id] = history
        faults += [f"{history.execution_id}: {fault}" for fault in _faults_of(history)]
    faults += [f"{id_}: it was accepted and is forgotten" for id_ in dict.fromkeys(submitted) if id_ not in known]
    faults += [f"{id_}: it is stored and nobody submitted it" for id_ in known.keys() - set(submitted)]
    if starts is not None:
        faults += _start_faults(known, starts)
    ended = Counter(history.reason or "no reason" for history in known.values() if history.status.is_terminal)
    if ended.total() != len(submitted):
        faults.append(f"{len(submitted)} were accepted and {ended.total()} have ended")
    return Verdict(
        submitted=len(submitted),
        events=sum(len(history.events) for history in known.values()),
        ended=dict(sorted(ended.items())),
        started=None if starts is None else sum(1 for count in starts.values() if count),
        faults=tuple(faults),
    )


async def history_of(store: StateStore, execution_id: ExecutionId) -> History:
    """Read a whole log, page by page. Raises ExecutionNotFound."""
    events: list[tuple[int, EventKind]] = []
    while True:
        page = await store.read(execution_id, after=events[-1][0] if events else 0)
        events += [(event.seq, event.kind) for event in page.events]
        if not page.events or page.events[-1].seq == page.last_seq:
            outcome = page.execution.outcome
            reason = None if outcome is None else outcome.reason.value
            return History(execution_id, page.execution.status, reason, tuple(events))


def _faults_of(history: History) -> list[str]:
    if not history.status.is_terminal:
        return [f"it is still {history.status.value}"]
    faults = log_faults(history.events)
    if not faults and history.events[-1][1] is not _END_OF[history.status]:
        faults.append(f"its status is {history.status.value} and its last event {history.events[-1][1].value}")
    return faults


def _start_faults(known: Mapping[str, History], starts: Mapping[str, int]) -> list[str]:
    faults = [
        f"{id_}: its program began {count} times"
        for id_, count in starts.items()
        if count > 1 + (_retries(known[id_]) if id_ in known else 0)
    ]
    faults += [f"{id_}: a program began that nobody submitted" for id_ in starts.keys() - known.keys()]
    completed = [history.execution_id for history in known.values() if history.status is ExecutionStatus.COMPLETED]
    faults += [f"{id_}: it completed and its program never began" for id_ in completed if not starts.get(id_)]
    return faults


def _retries(history: History) -> int:
    return sum(kind is EventKind.RETRY for _, kind in history.events)


def _shown(values: Sequence[object]) -> str:
    text = ", ".join(str(value) for value in values)
    return text if len(text) <= 200 else f"{text[:200]} …"
