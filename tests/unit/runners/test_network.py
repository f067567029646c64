"""How the server's open files are shared among proxies, and what a policy may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.runners.network import DESCRIPTORS_PER_CONNECTION, ConnectionBudget, Egress
from sandbox_core.domain.errors import LaunchFailed
from sandbox_core.domain.policy import NetworkPolicy


@given(st.integers(16, 1 << 20), st.integers(1, 1 << 16))
def test_all_proxies_together_stay_within_half_of_the_open_files(open_files: int, executions: int) -> None:
    budget = ConnectionBudget(executions, open_files=open_files)
    taken = 0
    try:
        for _ in range(min(executions, 1000)):
            budget.take()
            taken += 1
    except LaunchFailed:
        assert taken < executions
    assert 4 <= budget.each <= 128
    assert taken * budget.each * DESCRIPTORS_PER_CONNECTION <= open_files // 2


def test_the_usual_limit_is_enough_for_the_usual_number_of_executions() -> None:
    budget = ConnectionBudget(10, open_files=1024)
    for _ in range(10):
        budget.take()
    assert budget.each == 17


def test_what_is_given_back_can_be_taken_again() -> None:
    budget = ConnectionBudget(1, open_files=1024)
    budget.take()
    with pytest.raises(LaunchFailed):
        budget.take()
    budget.give_back()
    budget.take()


def test_denials_alone_need_no_proxy() -> None:
    egress = Egress()
    egress.unavailable = "there is none"
    assert egress.violations(NetworkPolicy(denied_domains=("not a name",))) == []


def test_every_entry_that_names_nothing_is_told() -> None:
    policy = NetworkPolicy(allowed_domains=("good.example", "*", "a/b"), denied_domains=("*.good.example", "c:d"))
    found = [(violation.field, violation.asked) for violation in Egress().violations(policy)]
    assert found == [
        ("network.allowed_domains", "*"),
        ("network.allowed_domains", "a/b"),
        ("network.denied_domains", "c:d"),
    ]
