"""The extrapolation of docs/scaling.md does the sums that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.redis_costs import Cost
from benchmarks.scaling import OUTPUT_BYTES, tables

ROOT = Path(__file__).parents[3]

EXECUTION = Cost(
    seconds=0.01, commands=150, round_trips=10, received_bytes=8192, sent_bytes=2048, processor_seconds=0.001
)
WITH_OUTPUT = Cost(0.01, 160, 12, 8192 + OUTPUT_BYTES, 2048 + OUTPUT_BYTES, 0.0015)
WORKER = Cost(1, 3, 1, 100, 50, 0.0002)


def cells(what: str) -> list[str]:
    (line,) = [line for line in tables(EXECUTION, WITH_OUTPUT, WORKER).splitlines() if line.startswith(f"| {what}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_was_measured_is_shown_per_execution_mib_and_worker() -> None:
    assert cells("*e*")[1:] == ["10.0", "150", "8.0 KiB", "2.0 KiB", "1000 µs"]
    assert cells("*o*")[1:] == ["8.0", "40", "1024.0 KiB", "1024.0 KiB", "2000 µs"]
    assert cells("*w*")[1:] == ["1.0", "3.0", "0.1 KiB", "0.0 KiB", "200 µs"]


@pytest.mark.parametrize(
    ("fleet", "shown"),
    [
        ("50 | 1 s", ["500", "5050", "4.9 MiB/s", "51%", ""]),
        ("1000 | 10 s", ["1000", "11000", "9.9 MiB/s", "120%", "over one Redis"]),
        ("1000 | 600 s", ["17", "1167", "0.3 MiB/s", "22%", ""]),
    ],
)
def test_a_fleet_s_load_is_its_idle_load_and_its_executions(fleet: str, shown: list[str]) -> None:
    assert cells(fleet)[2:] == shown


def test_the_limits_follow_from_the_processor_time() -> None:
    said = tables(EXECUTION, WITH_OUTPUT, WORKER).splitlines()[-1]
    assert "**700 executions a second**" in said
    assert "3500 workers that do nothing" in said
    assert "20 s or more" in said


def test_no_duration_is_long_enough_where_idle_workers_alone_are_too_many() -> None:
    assert "inf s" in tables(EXECUTION, WITH_OUTPUT, Cost(1, 3, 1, 100, 50, 0.001)).splitlines()[-1]


def test_what_the_docs_show_was_computed_by_it() -> None:
    recorded = re.search(
        r"<!-- scaling -->\n(.*?)<!-- end -->", (ROOT / "docs" / "scaling.md").read_text(), flags=re.DOTALL
    )
    assert recorded is not None
    computed = tables(EXECUTION, WITH_OUTPUT, WORKER).splitlines()
    words = [line for line in recorded[1].splitlines() if line]
    assert [line for line in computed if line.startswith("Load of")] == [
        line for line in words if line.startswith("Load of")
    ]
    heads = [re.match(r"\| [^|]+\|(?: \d+ s \|)?", line) for line in words]
    assert [found[0] for found in heads if found] == [
        found[0] for found in (re.match(r"\| [^|]+\|(?: \d+ s \|)?", line) for line in computed) if found
    ]
