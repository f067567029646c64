"""The aggregate: the transition table is the only way through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sandbox_core.domain.command import Command
from sandbox_core.domain.errors import IllegalTransition
from sandbox_core.domain.execution import Execution, Fact
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, NodeId, new_execution_id
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.outcome import STATUS_OF_REASON, Outcome, TerminationReason
from sandbox_core.domain.policy import ExecutionPolicy
from sandbox_core.domain.status import TRANSITIONS, ExecutionStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Written out again on purpose: the test must not read the table that it tests.
LEGAL = {
    ("pending", "running"),
    ("pending", "failed"),
    ("pending", "cancelled"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "timeout"),
    ("running", "cancelled"),
    ("running", "pending"),
}


def new_execution() -> Execution:
    return Execution(
        id=new_execution_id(NOW),
        principal=LOCAL_PRINCIPAL,
        session_id=None,
        command=Command(shell="true"),
        policy=ExecutionPolicy(),
        created_at=NOW,
    )


def test_the_table_has_exactly_the_legal_moves() -> None:
    moves = {(source.value, target.value) for source, targets in TRANSITIONS.items() for target in targets}
    assert moves == LEGAL
    assert set(TRANSITIONS) == set(ExecutionStatus)


def test_every_reason_leads_to_a_terminal_status() -> None:
    assert set(STATUS_OF_REASON) == set(TerminationReason)
    assert all(status.is_terminal for status in STATUS_OF_REASON.values())


def test_only_infrastructure_makes_failed() -> None:
    failed = {reason.value for reason, status in STATUS_OF_REASON.items() if status is ExecutionStatus.FAILED}
    assert failed == {"setup_failed", "never_started", "lost"}


def test_a_command_that_exits_3_is_completed() -> None:
    execution = new_execution()
    execution = execution.apply(execution.start(NodeId("n"), NOW))
    execution = execution.apply(execution.finish(Outcome(TerminationReason.EXITED, exit_code=3), NOW))
    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.outcome is not None
    assert execution.outcome.exit_code == 3


class Life(RuleBasedStateMachine):
    """Walks the table: what is legal changes the status, what is not raises and changes nothing."""

    @initialize(retry_safe=st.booleans())
    def submit(self, retry_safe: bool) -> None:
        self.execution = replace(new_execution(), retry_safe=retry_safe)
        self.starts = 0
        self.status = "pending"
        self.at = NOW

    @rule()
    def start(self) -> None:
        self.starts += self.status == "pending"
        self.attempt("running", lambda: self.execution.start(NodeId("n"), self.at))

    @rule()
    def requeue(self) -> None:
        if self.status == "running" and not (self.execution.retry_safe and self.starts < 3):
            with pytest.raises(IllegalTransition):
                self.execution.requeue(self.at)
        else:
            self.attempt("pending", lambda: self.execution.requeue(self.at))

    @rule(reason=st.sampled_from(TerminationReason))
    def finish(self, reason: TerminationReason) -> None:
        outcome = Outcome(reason)
        self.attempt(outcome.status.value, lambda: self.execution.finish(outcome, self.at))

    @rule()
    def prepare(self) -> None:
        isolation = Isolation(runner="r", version="1", isolated=True)
        if self.status == "running":
            self.execution = self.execution.apply(self.execution.prepare(isolation))
            assert self.execution.isolation == isolation
        else:
            with pytest.raises(IllegalTransition):
                self.execution.prepare(isolation)

    def attempt(self, wanted: str, decide: Callable[[], Fact]) -> None:
        self.at += timedelta(seconds=1)
        before = self.execution
        if (self.status, wanted) in LEGAL:
            self.execution = before.apply(decide())
            self.status = wanted
        else:
            with pytest.raises(IllegalTransition):
                decide()
            assert self.execution == before

    @invariant()
    def consistent(self) -> None:
        execution = self.execution
        assert execution.status == self.status
        assert execution.is_terminal == (execution.ended_at is not None) == (execution.outcome is not None)
        assert execution.is_terminal == (self.status not in {"pending", "running"})
        if self.status == "pending":
            assert (execution.node, execution.started_at, execution.isolation) == (None, None, None)
            assert execution.attempt == self.starts + 1
            assert (execution.requeued_at is None) == (self.starts == 0)
        assert execution.attempt <= 3


TestLife = Life.TestCase
