"""What a launcher does after its server: ending processes has a time of its own, and so has the look at grants."""

from __future__ import annotations

import signal

import pytest

from sandbox_adapters.runners.child.launcher import Launcher
from tests.integration.hardening.forked import in_child

pytestmark = pytest.mark.integration


def test_the_bound_on_ending_processes_ends_with_them() -> None:
    def seconds_left() -> int:
        Launcher.end_everything(object.__new__(Launcher))
        return signal.alarm(0)

    assert in_child(seconds_left) == 0
