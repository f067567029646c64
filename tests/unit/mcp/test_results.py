"""Views, words and payloads: what a reply shows of an execution."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.rabbitmq_connection import NoAnswer
from sandbox_core.domain.command import Command
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.errors import InvalidArgument, PolicyRefused, PolicyViolation, ServerDraining, ServerFull
from sandbox_core.domain.events import MAX_EVENT_BYTES, EventKind, OutputEvent
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, new_execution_id
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.ports.store import LogPage
from sandbox_mcp import output_schemas
from sandbox_mcp.failures import error_fields, internal_error_fields
from sandbox_mcp.large_answers import LARGEST_BODY_BYTES, fitting_bytes
from sandbox_mcp.payloads import execution_payload
from sandbox_mcp.replies import SandboxReplies, Wishes
from sandbox_mcp.views import Cursor, ExecutionView, ShownEvent, StatusView, parse_cursor, view_of_page
from sandbox_mcp.words import ending_line, shown_text, state_words, stream_text

START = datetime(2026, 1, 1, tzinfo=UTC)
PENDING = Execution(
    id=new_execution_id(START),
    principal=LOCAL_PRINCIPAL,
    session_id=None,
    command=Command(shell="true"),
    policy=ExecutionPolicy(),
    created_at=START,
)
RUNNING = PENDING.apply(PENDING.start(NodeId("node"), START))


def ended(reason: TerminationReason, **fields: Any) -> Execution:
    usage = ResourceUsage(wall_seconds=fields.pop("wall_seconds", 0.12), dropped_bytes=fields.pop("dropped_bytes", 0))
    outcome = Outcome(reason=reason, usage=usage, **fields)
    return RUNNING.apply(RUNNING.finish(outcome, START + timedelta(seconds=1)))


def printed(*pieces: bytes, kind: EventKind = EventKind.STDOUT) -> tuple[OutputEvent, ...]:
    return tuple(OutputEvent(number, kind, START, data) for number, data in enumerate(pieces, start=1))


def shown(*events: OutputEvent) -> tuple[ShownEvent, ...]:
    return tuple(ShownEvent(event.event_id, event) for event in events)


@pytest.mark.parametrize(
    ("execution", "line"),
    [
        (ended(TerminationReason.EXITED, exit_code=3), "[exit 3 in 120 ms]"),
        (ended(TerminationReason.WALL_TIME, wall_seconds=2.0), "[timeout after 2.0 s: killed]"),
        (
            ended(TerminationReason.SIGNALED, exit_code=137, signal=9),
            "[signal 9 (SIGKILL) after 120 ms, exit 137]",
        ),
        (ended(TerminationReason.CANCELLED), "[cancelled after 120 ms]"),
        (ended(TerminationReason.CANCELLED, message="Cancelled on request."), "[cancelled after 120 ms]"),
        (
            ended(TerminationReason.CANCELLED, message="Ended because the server is shutting down."),
            "[cancelled after 120 ms: Ended because the server is shutting down]",
        ),
        (ended(TerminationReason.LOST, message="The node is gone."), "[failed, lost: The node is gone]"),
        (
            ended(TerminationReason.MEMORY, exit_code=137, message="Out of memory."),
            "[memory limit after 120 ms, exit 137: Out of memory]",
        ),
        (
            ended(TerminationReason.EXITED, exit_code=0, dropped_bytes=5),
            "[exit 0 in 120 ms; 5 bytes over max_output_bytes were dropped]",
        ),
    ],
)
def test_ending_is_one_line(execution: Execution, line: str) -> None:
    assert ending_line(ExecutionView(execution)) == line


def test_running_says_how_to_read_on() -> None:
    line = ending_line(ExecutionView(RUNNING, last_event_id="17"))
    assert line.startswith("[running, ")
    assert f'get_execution_output(execution_id="{RUNNING.id}", last_event_id="17")' in line


def test_text_is_stdout_then_stderr_under_its_mark() -> None:
    view = ExecutionView(ended(TerminationReason.EXITED, exit_code=0))
    assert shown_text(view, "out", "err") == "out\n[stderr]\nerr\n[exit 0 in 120 ms]"
    assert shown_text(view, "", "") == "[exit 0 in 120 ms]"


def test_payload_keeps_nulls_and_fits_the_schema() -> None:
    for execution in (PENDING, RUNNING, ended(TerminationReason.EXITED, exit_code=0)):
        payload = execution_payload(ExecutionView(execution, last_event_id="0"), events=True, encoding="text")
        jsonschema.validate(payload, output_schemas.EXECUTION)
        assert "exit_code" in payload
    assert payload["signal"] is None


def test_the_schema_names_every_measure() -> None:
    properties = output_schemas.STATUS["properties"]
    assert set(properties["usage"]["properties"]) == set(ResourceUsage.__dataclass_fields__)
    assert set(properties["isolation"]["properties"]) == set(Isolation.__dataclass_fields__)


def refused(count: int) -> Execution:
    return ended(
        TerminationReason.EXITED,
        exit_code=1,
        denials=tuple(
            Denial(DenialKind.NETWORK, f"host-{number}:443", "network.allowed_domains", "It is not allowed.", number)
            for number in range(1, count + 1)
        ),
    )


def test_what_was_refused_is_in_the_fields_and_in_one_line_of_the_text() -> None:
    result = SandboxReplies().reply("execute_code", ExecutionView(refused(1), last_event_id="2"), Wishes())
    said = result["structuredContent"]
    jsonschema.validate(said, output_schemas.EXECUTION)
    assert said["denials"] == [
        {
            "kind": "network",
            "target": "host-1:443",
            "rule": "network.allowed_domains",
            "message": "It is not allowed.",
            "count": 1,
        }
    ]
    assert "denials_omitted" not in said
    assert result["content"][0]["text"] == (
        "[exit 1 in 120 ms]\n[refused: network host-1:443 (network.allowed_domains): It is not allowed]"
    )


def test_many_refusals_are_named_a_few_at_a_time_and_counted() -> None:
    execution = refused(4)
    assert execution.outcome is not None
    more = replace(execution, outcome=replace(execution.outcome, denials_omitted=5))
    result = SandboxReplies().reply("get_execution_status", StatusView(more, "3"), Wishes())
    jsonschema.validate(result["structuredContent"], output_schemas.STATUS)
    assert (len(result["structuredContent"]["denials"]), result["structuredContent"]["denials_omitted"]) == (4, 5)
    _, line = result["content"][0]["text"].splitlines()
    assert line.startswith("[refused: network host-1:443 (network.allowed_domains); ")
    assert line.endswith("; network host-3:443 (network.allowed_domains, 3 times); 9 more]")


def test_nothing_refused_is_an_empty_list_and_no_words() -> None:
    view = ExecutionView(ended(TerminationReason.EXITED, exit_code=0), last_event_id="0")
    result = SandboxReplies().reply("execute_code", view, Wishes())
    assert result["structuredContent"]["denials"] == []
    assert "refused" not in result["content"][0]["text"]


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("command", "is empty"),
        PolicyRefused([PolicyViolation("network", "a", "none")]),
        ServerFull("no place", 7),
        ServerDraining(),
    ],
)
def test_errors_fit_every_output_schema(error: Any) -> None:
    result = SandboxReplies().failure("execute_code", error_fields(error))
    assert result["isError"] is True
    assert str(error) in result["content"][0]["text"]
    for schema in (output_schemas.EXECUTION, output_schemas.STATUS, output_schemas.EXECUTIONS, output_schemas.CANCEL):
        jsonschema.validate(result["structuredContent"], schema)


def test_retry_time_is_told_where_it_helps() -> None:
    assert error_fields(ServerFull("no place", 7))["retry_after_seconds"] == 7
    assert error_fields(ServerDraining())["retry_after_seconds"] > 0
    assert error_fields(NoAnswer("the queue"))["retry_after_seconds"] > 0
    assert "retry_after_seconds" not in error_fields(InvalidArgument("a", "b"))
    assert internal_error_fields()["code"] == "internal_error"


@pytest.mark.parametrize("text", ["", None, "0", "12", "12+4096", "12+65535"])
def test_cursor_text_comes_back(text: str | None) -> None:
    assert str(parse_cursor(text)) == (text or "0")


@pytest.mark.parametrize("text", ["+1", "1+", "1+1+1", "-1", "a", " 1", "1 ", "१", "1+-1"])
def test_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="last_event_id"):
        parse_cursor(text)


@pytest.mark.parametrize("skip", [MAX_EVENT_BYTES, 999_999_999])
def test_a_cursor_further_in_an_event_than_any_is_long_is_refused_before_anything_is_read(skip: int) -> None:
    with pytest.raises(InvalidArgument, match="last_event_id"):
        parse_cursor(f"5+{skip}")


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6), st.integers(min_value=1, max_value=30))
def test_pages_join_to_the_log_and_never_split_a_character(pieces: list[str], max_bytes: int) -> None:
    events = printed(*(piece.encode() for piece in pieces))
    cursor, joined = Cursor(), ""
    for _ in range(10_000):
        page = view_of_page(_page(events, cursor, max_bytes), cursor, max_bytes)
        data = b"".join(item.event.data for item in page.head)
        assert len(data) <= max(max_bytes, 4)
        joined += data.decode()
        cursor = parse_cursor(page.last_event_id)
        if not page.has_more:
            break
    assert joined == "".join(pieces)


def _page(events: tuple[OutputEvent, ...], cursor: Cursor, max_bytes: int) -> LogPage:
    """What a store returns: whole events within the bytes asked for, the first one always."""
    wanted: list[OutputEvent] = []
    room = max_bytes + cursor.skip
    for event in events[cursor.after :]:
        if wanted and len(event.data) > room:
            break
        wanted.append(event)
        room -= len(event.data)
    return LogPage(execution=RUNNING, events=tuple(wanted), last_seq=len(events))


def test_gap_is_marked_in_the_stream_that_has_it() -> None:
    head, tail = printed(b"first", b"last")
    view = ExecutionView(
        ended(TerminationReason.EXITED, exit_code=0), shown(head), shown(tail), 100, resume_at="0", last_event_id="2"
    )
    result = SandboxReplies().reply("execute_code", view, Wishes())
    said = result["structuredContent"]
    assert said["stdout"].startswith("first\n[... 100 bytes left out; read on with get_execution_output(")
    assert said["stdout"].endswith("...]\nlast")
    assert said["stderr"] == ""
    assert said["truncation"]["omitted_bytes"] == 100


def test_page_has_no_marks_so_that_it_joins_to_the_next() -> None:
    truncated = replace(printed(b"")[0], kind=EventKind.TRUNCATED, fields={"dropped_bytes": 9})
    view = ExecutionView(RUNNING, shown(*printed(b"a"), truncated, *printed(b"b")), is_page=True, last_event_id="3")
    assert execution_payload(view, events=False, encoding="text")["stdout"] == "ab"


def _lost_once() -> Execution:
    running = replace(RUNNING, retry_safe=True)
    return running.apply(running.requeue(START))


def test_the_text_parts_what_two_attempts_printed() -> None:
    retry = OutputEvent(2, EventKind.RETRY, START, b"again", {"attempt": 2})
    events = (*printed(b"one\n"), retry, OutputEvent(3, EventKind.STDOUT, START, b"two\n"))
    view = ExecutionView(replace(ended(TerminationReason.EXITED, exit_code=0), attempt=2), head=shown(*events))
    assert stream_text(view, EventKind.STDOUT) == "one\n\n[... its machine died; attempt 2 begins here ...]\ntwo\n"
    assert stream_text(view, EventKind.STDERR) == ""
    assert execution_payload(view, events=False, encoding="text")["attempt"] == 2


def test_what_waits_to_be_run_again_says_so() -> None:
    again = _lost_once()
    assert state_words(again) == "its machine is gone, waits to be run again: attempt 2"
    cancelled = again.apply(again.finish(Outcome(TerminationReason.CANCELLED), START))
    assert state_words(cancelled) == "cancelled before it started again"


def test_never_started_and_lost_are_told_apart() -> None:
    waited = PENDING.apply(PENDING.finish(Outcome(TerminationReason.NEVER_STARTED, message="Never started: x."), START))
    assert state_words(waited) == "failed, never_started: Never started: x"
    assert state_words(ended(TerminationReason.LOST, message="Gone.")) == "failed, lost: Gone"


@pytest.mark.parametrize("piece", [b"x", b"\n", b"\1", b"\xff", "漢".encode()])
def test_a_body_has_room_for_as_much_output_as_stays_within_it(piece: bytes) -> None:
    event = piece * (MAX_EVENT_BYTES // len(piece))
    view = ExecutionView(ended(TerminationReason.EXITED), head=shown(*printed(*[event] * 128)), last_event_id="128")
    room = fitting_bytes(view, Wishes(events=True))
    if piece == b"x":
        assert room is None
        return
    assert room is not None
    fitting = ExecutionView(view.execution, head=view.head[: room // len(event)], last_event_id="1")
    size = len(json.dumps(SandboxReplies().reply("get_execution_output", fitting, Wishes(events=True))))
    assert LARGEST_BODY_BYTES * 0.9 < size < LARGEST_BODY_BYTES * 1.02
    assert fitting_bytes(fitting, Wishes(events=True)) is None


def test_output_as_base64_does_not_grow_further() -> None:
    view = ExecutionView(ended(TerminationReason.EXITED), head=shown(*printed(*[b"\1" * MAX_EVENT_BYTES] * 128)))
    assert fitting_bytes(view, Wishes(events=True, encoding="base64")) is None
