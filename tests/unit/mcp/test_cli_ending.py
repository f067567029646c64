"""What `sandbox run` says after the end."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.events import EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, new_execution_id
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_mcp.cli_ending import ending_notices, usage_words
from sandbox_mcp.cli_output import Output
from sandbox_mcp.cli_run import _Job
from sandbox_mcp.cli_signals import Interruptions

START = datetime(2026, 1, 1, tzinfo=UTC)
EXIT = OutputEvent(2, EventKind.EXIT, START, b"Exited with code 1.", {"exit_code": 1, "duration_ms": 250.0})


def ended(count: int, omitted: int = 0) -> Execution:
    denials = tuple(
        Denial(DenialKind.FILESYSTEM, f"/path/{number}", "filesystem.deny_read", "It is hidden.")
        for number in range(count)
    )
    usage = ResourceUsage(wall_seconds=0.25, stdout_bytes=3, network_sent_bytes=2048)
    pending = Execution(new_execution_id(START), LOCAL_PRINCIPAL, None, Command(shell="x"), ExecutionPolicy(), START)
    running = pending.apply(pending.start(NodeId("n"), START))
    running = running.apply(running.prepare(Isolation("r", "1", True, "none", 7, ("pid", "seccomp"), {}, {"a": "b"})))
    outcome = Outcome(TerminationReason.EXITED, 1, usage=usage, denials=denials, denials_omitted=omitted)
    return running.apply(running.finish(outcome, START))


def test_refusals_are_always_told_and_the_rest_when_asked() -> None:
    quiet = ending_notices(ended(1), verbose=False)
    assert quiet == ["refused filesystem /path/0 (filesystem.deny_read): It is hidden."]
    loud = ending_notices(ended(1), verbose=True)
    assert loud[:1] == quiet
    assert loud[1].startswith("used 250 ms wall, ")
    assert loud[2] == "isolated by r 1; network none; layers pid, seccomp; a b"
    assert ending_notices(ended(0), verbose=False) == []


def test_further_refusals_are_counted() -> None:
    lines = ending_notices(ended(12, omitted=3), verbose=False)
    assert len(lines) == 11
    assert lines[-1] == "refused 5 more"


def test_usage_names_every_measure() -> None:
    everything = ResourceUsage(0.1, 0.2, 0.3, 4 << 20, 5, 6, 7, 0.8, 0.9, 10 << 20, 11, 12 << 10, 13 << 30)
    assert usage_words(everything) == (
        "100 ms wall, 200 ms user CPU, 300 ms system CPU, 10.0 MiB memory at most, 4.0 MiB in the largest process, "
        "11 processes at most, printed 5 B and 6 B of errors, of which 7 B were dropped, sent 12.0 KiB, "
        "received 13.0 GiB, queued 800 ms, set up in 900 ms"
    )


@pytest.mark.anyio
async def test_the_last_line_of_json_has_it_all(capfd: pytest.CaptureFixture[str]) -> None:
    await Output(json_lines=True).show_end(EXIT, ended(1, omitted=2))
    (line,) = capfd.readouterr().out.splitlines()
    said = json.loads(line)
    assert (said["type"], said["event_id"], said["exit_code"], said["duration_ms"]) == ("exit", "2", 1, 250.0)
    assert [denial["target"] for denial in said["denials"]] == ["/path/0"]
    assert said["denials_omitted"] == 2
    assert (said["usage"]["stdout_bytes"], said["usage"]["network_sent_bytes"]) == (3, 2048)
    assert said["isolation"]["layers"] == ["pid", "seccomp"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (TerminationReason.LOST, 123),
        (TerminationReason.NEVER_STARTED, 125),
        (TerminationReason.SETUP_FAILED, 125),
        (TerminationReason.WALL_TIME, 124),
    ],
)
@pytest.mark.anyio
async def test_what_was_lost_exits_otherwise_than_what_never_started(reason: TerminationReason, code: int) -> None:
    pending = Execution(new_execution_id(START), LOCAL_PRINCIPAL, None, Command(shell="x"), ExecutionPolicy(), START)
    running = pending.apply(pending.start(NodeId("n"), START))
    nobody: Any = None
    job = _Job(nobody, pending.id, Output(json_lines=False), Interruptions())
    assert job.exit_code(running.apply(running.finish(Outcome(reason), START))) == code
