"""Ids, commands and cursors: callers' text becomes a value or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_core.domain.command import MAX_COMMAND_BYTES, MAX_ENVIRONMENT_BYTES, MAX_STDIN_BYTES, Command
from sandbox_core.domain.errors import InvalidArgument, SandboxError
from sandbox_core.domain.events import parse_event_id
from sandbox_core.domain.ids import new_execution_id, parse_execution_id, parse_principal, parse_session_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_ids_sort_by_creation_time_and_never_repeat() -> None:
    ids = [new_execution_id(NOW + timedelta(milliseconds=step)) for step in range(500)]
    assert ids == sorted(ids)
    assert len({new_execution_id(NOW) for _ in range(2000)}) == 2000
    assert all(parse_execution_id(one) == one for one in ids)


@pytest.mark.parametrize("text", ["", "x", "../../etc", "A" * 36, "0" * 36, "\0", "a" * 10_000, "*", "é" * 36])
def test_text_that_is_no_execution_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="execution_id"):
        parse_execution_id(text)


@pytest.mark.parametrize("parse", [parse_session_id, parse_principal])
@pytest.mark.parametrize("text", ["", "a b", "a\n", "a/b", "x" * 129, "a\0"])
def test_handles_with_other_characters_are_refused(parse: Callable[[str], str], text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"shell": ""}, "command"),
        ({"shell": " \n\t"}, "command"),
        ({"argv": ()}, "command"),
        ({"argv": ("",)}, "command"),
        ({}, "command"),
        ({"shell": "a", "argv": ("a",)}, "command"),
        ({"shell": "a\0b"}, "command"),
        ({"shell": "\ud800"}, "command"),
        ({"shell": "a", "interactive": "yes"}, "interactive"),
        ({"argv": ("a", "b\0")}, "command"),
        ({"shell": "x" * (1 << 20)}, "command"),
        ({"argv": ("x",) * 70_000}, "command"),
        ({"shell": "a", "working_directory": ""}, "working_directory"),
        ({"shell": "a", "working_directory": "/a\0"}, "working_directory"),
        ({"shell": "a", "environment": {"A B": "x"}}, "environment"),
        ({"shell": "a", "environment": {"": "x"}}, "environment"),
        ({"shell": "a", "environment": {"A": "x\0"}}, r"environment\.A"),
        ({"shell": "a", "environment": {f"A{n}": "x" * 1000 for n in range(1000)}}, "environment"),
        ({"shell": "a", "stdin": b"x" * (MAX_STDIN_BYTES + 1)}, "stdin"),
    ],
)
def test_a_bad_command_is_refused_naming_the_field(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        Command(**arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            {"argv": ("x" * 99,) * 4000},
            "command: is 400000 bytes; at most 131071 are taken. Send large programs as stdin",
        ),
        ({"shell": "a", "environment": {"A" * 200_000: ""}}, ": is 200001 bytes; at most 131071 are taken$"),
        ({"argv": ("a",) * 4097}, "command: has 4097 items; at most 4096 are taken. Send long lists as stdin"),
        (
            {"shell": "a", "environment": {f"A{number}": "" for number in range(1025)}},
            "environment: has 1025 variables; at most 1024 are taken$",
        ),
        ({"shell": "a", "working_directory": "/" * 5000}, ": is 5000 bytes; at most 4095 are taken$"),
    ],
)
def test_what_is_too_long_comes_with_its_size_and_the_limit(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        Command(**arguments)


def test_the_largest_command_is_accepted() -> None:
    Command(shell="x" * MAX_COMMAND_BYTES)
    Command(argv=("x", "y" * (MAX_COMMAND_BYTES - 3)))
    Command(shell="x", environment={"A": "y" * (MAX_ENVIRONMENT_BYTES - 10)}, stdin=b"x" * MAX_STDIN_BYTES)


@given(st.integers(0, 10**18 - 1))
def test_an_event_id_reads_back_as_its_number(number: int) -> None:
    assert parse_event_id(str(number)) == number


@pytest.mark.parametrize("text", ["-1", "1.5", "x", " 1", "9" * 19, "٣"])
def test_a_last_event_id_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="last_event_id"):
        parse_event_id(text)


def test_no_last_event_id_means_from_the_start() -> None:
    assert parse_event_id(None) == parse_event_id("") == 0


def test_every_error_has_a_code_of_its_own() -> None:
    def family(cls: type[SandboxError]) -> set[type[SandboxError]]:
        return {cls, *(sub for child in cls.__subclasses__() for sub in family(child))}

    core = [cls for cls in family(SandboxError) if cls.__module__ == "sandbox_core.domain.errors"]
    assert len({cls.code for cls in core}) == len(core)
