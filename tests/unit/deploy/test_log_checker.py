"""The checker of logs after a fault finds what is wrong with one."""

from __future__ import annotations

import pytest

from tests.integration.replicas.harness import check_log


def log(*kinds: str) -> list[dict[str, object]]:
    return [{"event_id": str(number), "type": kind, "data": ""} for number, kind in enumerate(kinds, 1)]


def test_a_whole_log_passes() -> None:
    check_log(log("ready", "stdout", "exit"))
    check_log(log("ready", "stdout"), ended=False)


@pytest.mark.parametrize(
    "events",
    [
        log("ready", "stdout"),
        log("ready", "exit", "stdout"),
        log("ready", "exit", "exit"),
        log("ready", "stdout", "exit")[1:],
        log("ready", "stdout", "exit")[::2],
        [*log("ready", "stdout"), *log("ready", "stdout", "exit")[1:]],
        [],
    ],
    ids=["no end", "end not last", "two ends", "no beginning", "a hole", "a duplicate", "nothing"],
)
def test_a_torn_log_is_found(events: list[dict[str, object]]) -> None:
    with pytest.raises(AssertionError):
        check_log(events)
