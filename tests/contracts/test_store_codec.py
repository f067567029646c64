"""The codec loses nothing, whatever is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_adapters.stores.codec import decode_event, decode_execution, encode_event, encode_execution
from sandbox_core.domain.command import MAX_STDIN_BYTES, Command
from sandbox_core.domain.denial import Denial, DenialKind
from sandbox_core.domain.errors import InvalidArgument, StoredDataCorrupt
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, Principal, SessionId, new_execution_id
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import Outcome, ResourceUsage, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy, FilesystemPolicy, IsolationPolicy, NetworkPolicy, ResourceLimits

_AT = datetime(2026, 1, 1, tzinfo=UTC)
_TIMES = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001  # as above
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]),
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_NAMED = _TEXT.filter(lambda text: text.strip() != "" and "\0" not in text)
_FIELDS = st.dictionaries(
    _TEXT, st.one_of(_TEXT, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()), max_size=4
)
_COUNTS = st.none() | st.integers(1, 1 << 40)


@given(data=st.binary(max_size=300), kind=st.sampled_from(EventKind), at=_TIMES, fields=_FIELDS, seq=st.integers(1))
@example(data=bytes(range(256)), kind=EventKind.STDOUT, at=_AT, fields={}, seq=1)
@example(data=b"\xed\xa0\x80", kind=EventKind.STDOUT, at=_AT, fields={}, seq=1)
@example(data=b"\xc0\x80", kind=EventKind.STDOUT, at=_AT, fields={}, seq=1)
def test_an_event_of_any_bytes_comes_back(
    data: bytes, kind: EventKind, at: datetime, fields: dict[str, str | int | float | bool | None], seq: int
) -> None:
    line = encode_event(seq, EventDraft(kind, at, data, fields))
    assert b"\n" not in line
    event = decode_event(line, "x", seq)
    assert (event.seq, event.kind, event.at, event.data, event.fields) == (seq, kind, at, data, fields)
    assert [type(value) for value in event.fields.values()] == [type(value) for value in fields.values()]
    assert event.at.utcoffset() == timedelta(0)


@given(text=st.text(max_size=200))
def test_text_is_stored_as_text(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    line = json.loads(encode_event(1, EventDraft(EventKind.STDOUT, _AT, data)))
    try:
        expected = data.decode()
    except UnicodeDecodeError:
        assert line["encoding"] == "base64"
    else:
        assert "encoding" not in line
        assert line["data"] == expected


def test_every_code_point_comes_back() -> None:
    for start in range(0, 0x110000, 0x8000):
        text = "".join(map(chr, range(start, start + 0x8000))).encode("utf-8", "surrogatepass")
        assert decode_event(encode_event(1, EventDraft(EventKind.STDOUT, _AT, text)), "x", 1).data == text


@given(raw=st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_noise_is_corrupt_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(StoredDataCorrupt):
        decode_event(raw, "x", 1)
    with pytest.raises(StoredDataCorrupt):
        decode_execution(raw, "x")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    key=st.sampled_from(["v", "seq", "type", "ts", "data", "encoding", "fields"]),
)
def test_any_json_in_any_place_of_a_line_is_read_or_corrupt(value: object, key: str) -> None:
    line = json.loads(encode_event(1, EventDraft(EventKind.STDOUT, _AT, b"ok")))
    line[key] = value
    try:
        decode_event(json.dumps(line).encode(), "x", 1)
    except StoredDataCorrupt:
        return


@given(
    command=st.builds(
        Command,
        shell=_NAMED,
        working_directory=st.none() | _NAMED,
        environment=st.dictionaries(
            st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), _TEXT.filter(lambda text: "\0" not in text), max_size=3
        ),
        stdin=st.binary(max_size=60),
        interactive=st.booleans(),
    )
    | st.builds(Command, argv=st.lists(_NAMED, min_size=1, max_size=3).map(tuple)),
    policy=st.builds(
        ExecutionPolicy,
        network=st.builds(NetworkPolicy, st.lists(_NAMED, max_size=2).map(tuple)),
        filesystem=st.builds(
            FilesystemPolicy,
            allow_read=st.lists(_NAMED, max_size=2).map(tuple),
            allow_write=st.lists(_NAMED, max_size=2).map(tuple),
        ),
        isolation=st.builds(IsolationPolicy, st.lists(_NAMED, max_size=2).map(tuple)),
        resource_limits=st.builds(
            ResourceLimits,
            max_memory_mb=_COUNTS,
            max_processes=_COUNTS,
            timeout_seconds=st.none() | st.floats(0.001, 1e6) | st.integers(1, 1000),
        ),
    ),
    outcome=st.none()
    | st.builds(
        Outcome,
        st.sampled_from(TerminationReason),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        message=st.none() | _TEXT,
        usage=st.builds(
            ResourceUsage, st.floats(0, 1e9), stdout_bytes=st.integers(0, 1 << 60), network_sent_bytes=_COUNTS
        ),
        denials=st.lists(st.builds(Denial, st.sampled_from(DenialKind), _TEXT, _TEXT, _TEXT), max_size=2).map(tuple),
        denials_omitted=st.integers(0, 1 << 60),
    ),
    at=_TIMES,
    labels=st.frozensets(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True), max_size=8),
)
def test_any_execution_comes_back(
    command: Command, policy: ExecutionPolicy, outcome: Outcome | None, at: datetime, labels: frozenset[str]
) -> None:
    execution = Execution(
        new_execution_id(at), Principal("a@b"), SessionId("s"), command, policy, at, labels=tuple(sorted(labels))
    )
    assert decode_execution(encode_execution(execution), execution.id) == execution
    running = execution.apply(execution.start(NodeId("n"), at))
    running = running.apply(running.prepare(Isolation("r", "1", True, layers=("pid",), limits={"a": "b"})))
    assert decode_execution(encode_execution(running), execution.id) == running
    if outcome is not None:
        final = running.apply(running.finish(outcome, at))
        assert decode_execution(encode_execution(final), execution.id) == final


_WRITTEN_BY_VERSION_1 = (
    b'{"v":1,"execution":{"id":"01JGFJJZ000000000000000000","principal":"local","session_id":null,'
    b'"command":{"argv":["true"],"shell":null,"working_directory":null,"environment":{},"stdin":"",'
    b'"interactive":false},"policy":{"network":{"allowed_domains":[],"denied_domains":[]},"filesystem":'
    b'{"deny_read":["x"],"allow_write":[],"deny_write":[]},"resource_limits":{"max_memory_mb":7}},'
    b'"created_at":"2026-01-01T00:00:00Z","status":"completed","node":"n","started_at":"2026-01-01T00:00:00Z",'
    b'"ended_at":"2026-01-01T00:00:01Z","isolation":null,"outcome":{"reason":"exited","exit_code":3,"signal":null,'
    b'"message":null,"usage":{"wall_seconds":1.0,"stdout_bytes":2}}}}'
)


def test_what_version_1_wrote_is_still_read() -> None:
    execution = decode_execution(_WRITTEN_BY_VERSION_1, "01JGFJJZ000000000000000000")
    assert execution.outcome == Outcome(
        TerminationReason.EXITED, exit_code=3, usage=ResourceUsage(wall_seconds=1.0, stdout_bytes=2)
    )
    assert execution.policy.filesystem == FilesystemPolicy(deny_read=("x",))
    assert json.loads(encode_execution(execution))["v"] == 3


def test_what_version_2_wrote_has_no_labels() -> None:
    execution = Execution(new_execution_id(_AT), LOCAL_PRINCIPAL, None, Command(argv=("true",)), ExecutionPolicy(), _AT)
    document = json.loads(encode_execution(execution))
    del document["execution"]["labels"]
    assert decode_execution(json.dumps(document | {"v": 2}).encode(), execution.id) == execution


def test_a_version_of_the_future_is_corrupt() -> None:
    with pytest.raises(StoredDataCorrupt):
        decode_execution(_WRITTEN_BY_VERSION_1.replace(b'"v":1', b'"v":99'), "01JGFJJZ000000000000000000")


def test_what_no_json_can_hold_is_refused_when_it_is_written() -> None:
    with pytest.raises(InvalidArgument):
        encode_event(1, EventDraft(EventKind.STDOUT, _AT, b"", {"half": "\ud800"}))
    policy = ExecutionPolicy(filesystem=FilesystemPolicy(allow_write=("/\ud800",)))
    execution = Execution(new_execution_id(_AT), LOCAL_PRINCIPAL, None, Command(argv=("true",)), policy, _AT)
    with pytest.raises(InvalidArgument):
        encode_execution(execution)


def test_a_list_where_a_tuple_is_declared_is_stored_without_a_word() -> None:
    names: Any = ["a.example"]
    policy = ExecutionPolicy(network=NetworkPolicy(allowed_domains=names))
    execution = Execution(new_execution_id(_AT), LOCAL_PRINCIPAL, None, Command(shell="x"), policy, _AT)
    found = decode_execution(encode_execution(execution), execution.id)
    assert found.policy.network.allowed_domains == ("a.example",)


def test_what_could_not_be_read_again_is_refused_by_name() -> None:
    wrong: Any = "yes"
    execution = Execution(new_execution_id(_AT), LOCAL_PRINCIPAL, None, Command(shell="x"), ExecutionPolicy(), _AT)
    with pytest.raises(InvalidArgument, match=r"execution\.retry_safe"):
        encode_execution(replace(execution, retry_safe=wrong))


@pytest.mark.parametrize(
    "stdin",
    [
        b"\xff" * MAX_STDIN_BYTES,
        b"\n" * MAX_STDIN_BYTES,
        b"\1" * MAX_STDIN_BYTES,
        b'"' * MAX_STDIN_BYTES,
        b"x" * MAX_STDIN_BYTES,
    ],
    ids=["binary", "empty lines", "control characters", "quotes", "text"],
)
def test_the_largest_stdin_comes_back_and_takes_little_more_than_itself(stdin: bytes) -> None:
    execution = Execution(
        id=new_execution_id(_AT),
        principal=LOCAL_PRINCIPAL,
        session_id=None,
        command=Command(shell="cat", stdin=stdin),
        policy=ExecutionPolicy(),
        created_at=_AT,
    )
    document = encode_execution(execution)
    assert decode_execution(document, execution.id) == execution
    assert len(document) < 1.4 * MAX_STDIN_BYTES
