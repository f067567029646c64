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
RUNNING = Cost(0, 6, 0.03, 20, 2, 0.00002)
COSTS = (EXECUTION, WITH_OUTPUT, WORKER, RUNNING)


def cells(what: str) -> list[str]:
    (line,) = [line for line in tables(*COSTS).splitlines() if line.startswith(f"| {what}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_what_was_measured_is_shown_per_execution_mib_and_worker() -> None:
    assert cells("*e*")[1:] == ["10.0", "150", "8.0 KiB", "2.0 KiB", "1000 µs"]
    assert cells("*o*")[1:] == ["8.0", "40", "1024.0 KiB", "1024.0 KiB", "2000 µs"]
    assert cells("*w*")[1:] == ["1.0", "3.0", "0.1 KiB", "0.0 KiB", "200 µs"]
    assert cells("*r*")[1:] == ["0.0", "6.0", "0.0 KiB", "0.0 KiB", "20 µs"]


@pytest.mark.parametrize(
    ("fleet", "shown"),
    [
        ("50 | 1 s", ["500", "5065", "4.9 MiB/s", "52%", ""]),
        ("1000 | 10 s", ["1000", "11300", "10.1 MiB/s", "140%", "over one Redis"]),
        ("1000 | 600 s", ["17", "1467", "0.5 MiB/s", "42%", ""]),
    ],
)
def test_a_fleet_s_load_is_that_of_its_workers_of_what_runs_and_of_what_begins(fleet: str, shown: list[str]) -> None:
    assert cells(fleet)[2:] == shown


def test_the_limits_follow_from_the_processor_time() -> None:
    said = tables(*COSTS).splitlines()[-1]
    assert "**700 executions a second**" in said
    assert "3500 workers that do nothing" in said
    assert "35000 executions that only go on running" in said
    assert "33 s or more" in said


def test_no_duration_is_long_enough_where_idle_workers_alone_are_too_many() -> None:
    assert "inf s" in tables(EXECUTION, WITH_OUTPUT, Cost(1, 3, 1, 100, 50, 0.001), RUNNING).splitlines()[-1]


def test_what_the_docs_show_was_computed_by_it() -> None:
    recorded = re.search(
        r"<!-- scaling -->\n(.*?)<!-- end -->", (ROOT / "docs" / "scaling.md").read_text(), flags=re.DOTALL
    )
    assert recorded is not None
    computed = tables(*COSTS).splitlines()
    words = [line for line in recorded[1].splitlines() if line]
    assert [line for line in computed if line.startswith("Load of")] == [
        line for line in words if line.startswith("Load of")
    ]
    heads = [re.match(r"\| [^|]+\|(?: \d+ s \|)?", line) for line in words]
    assert [found[0] for found in heads if found] == [
        found[0] for found in (re.match(r"\| [^|]+\|(?: \d+ s \|)?", line) for line in computed) if found
    ]
