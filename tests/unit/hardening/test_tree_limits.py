"""What a tree's cgroup counted becomes limits hit, and the reason of a command that failed."""

from __future__ import annotations

import pytest

from sandbox_adapters.runners.tree_limits import TreeRecord, with_tree
from sandbox_core.domain.outcome import TerminationReason
from sandbox_core.domain.policy import ResourceLimits
from sandbox_core.ports.runner import LimitHit, ProcessExit

LIMITS = ResourceLimits(max_memory_mb=100, max_processes=10)
MIB = 1 << 20


def ended(code: int, reason: TerminationReason = TerminationReason.EXITED) -> ProcessExit:
    return ProcessExit(reason=reason, exit_code=code)


def test_what_was_used_is_on_the_exit() -> None:
    exit_ = with_tree(ended(0), LIMITS, TreeRecord(5 * MIB, 0, 3, 0))
    assert (exit_.peak_memory_bytes, exit_.peak_processes) == (5 * MIB, 3)
    assert (exit_.reason, exit_.limits_hit, exit_.message) == (TerminationReason.EXITED, (), None)


def test_nothing_counted_changes_nothing() -> None:
    assert with_tree(ended(137), LIMITS, TreeRecord()) == ended(137)


@pytest.mark.parametrize("reason", [TerminationReason.EXITED, TerminationReason.SIGNALED])
def test_a_kill_for_memory_is_why_a_command_failed(reason: TerminationReason) -> None:
    exit_ = with_tree(ended(137, reason), LIMITS, TreeRecord(100 * MIB, 2, 5, 0))
    assert exit_.reason is TerminationReason.MEMORY
    assert exit_.exit_code == 137
    assert exit_.limits_hit == (LimitHit("max_memory_mb", 100, 100.0),)
    assert "killed 2 of its processes at the limit of 100 MiB" in (exit_.message or "")


def test_a_refused_process_is_why_a_command_failed() -> None:
    exit_ = with_tree(ended(254), LIMITS, TreeRecord(MIB, 0, 10, 7))
    assert (exit_.reason, exit_.limits_hit) == (TerminationReason.PROCESSES, (LimitHit("max_processes", 10, 10),))
    assert exit_.message == "The limit of 10 processes refused 7 more."


def test_memory_goes_before_processes() -> None:
    exit_ = with_tree(ended(1), LIMITS, TreeRecord(100 * MIB, 1, 10, 7))
    assert exit_.reason is TerminationReason.MEMORY
    assert [hit.name for hit in exit_.limits_hit] == ["max_processes", "max_memory_mb"]


def test_a_command_that_did_well_all_the_same_keeps_its_reason() -> None:
    exit_ = with_tree(ended(0), LIMITS, TreeRecord(100 * MIB, 1, 10, 7))
    assert (exit_.reason, exit_.message, len(exit_.limits_hit)) == (TerminationReason.EXITED, None, 2)


def test_a_reason_that_is_known_stays_and_its_limit_comes_first() -> None:
    hit = LimitHit("max_cpu_seconds", 1, 1.01)
    before = ProcessExit(reason=TerminationReason.CPU_TIME, exit_code=137, limits_hit=(hit,))
    exit_ = with_tree(before, LIMITS, TreeRecord(101 * MIB, 1, 2, 0))
    assert exit_.reason is TerminationReason.CPU_TIME
    assert [each.name for each in exit_.limits_hit] == ["max_cpu_seconds", "max_memory_mb"]


def test_a_limit_that_was_not_set_is_not_named() -> None:
    exit_ = with_tree(ended(1), ResourceLimits(), TreeRecord(MIB, 0, 2, 1))
    assert (exit_.reason, exit_.limits_hit) == (TerminationReason.EXITED, ())


@pytest.mark.parametrize("limits", [ResourceLimits(), LIMITS])
def test_a_kill_below_the_limit_was_for_memory_that_others_lacked(limits: ResourceLimits) -> None:
    exit_ = with_tree(ended(137), limits, TreeRecord(60 * MIB, 1, 2, 0))
    assert (exit_.reason, exit_.limits_hit) == (TerminationReason.MEMORY, ())
    assert "not at a limit of its own" in (exit_.message or "")


def test_a_kill_is_taken_for_one_at_the_limit_where_no_peak_is_known() -> None:
    exit_ = with_tree(ended(137), LIMITS, TreeRecord(None, 1, None, None))
    assert exit_.limits_hit == (LimitHit("max_memory_mb", 100),)


def test_the_servers_lack_of_memory_is_told_for_one_that_failed_and_no_limit_of_its_own_is_named() -> None:
    exit_ = with_tree(ended(137, TerminationReason.SIGNALED), LIMITS, TreeRecord(server_ran_out=True))
    assert (exit_.reason, exit_.limits_hit) == (TerminationReason.MEMORY, ())
    assert "all executions of the server share" in (exit_.message or "")
    assert with_tree(ended(0), LIMITS, TreeRecord(server_ran_out=True)) == ended(0)
