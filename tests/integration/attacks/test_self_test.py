"""A wall that failed to load does not pass the start-up self-test."""

from __future__ import annotations

import os

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner
from sandbox_adapters.runners.controls import Control, Controls
from sandbox_core.domain.errors import RunnerUnavailable

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SEEN = {
    Control.PID: "in the pid namespace of the host",
    Control.IPC: "in the ipc namespace of the host",
    Control.UTS: "in the uts namespace of the host",
    Control.CGROUP: "in the cgroup namespace of the host",
    Control.NET: "in the net namespace of the host",
    Control.CAPABILITIES_NONE: "capabilities",
    Control.READ_ONLY_ROOT: "not mounted read-only",
    Control.READ_ONLY_PROC: "/proc is not mounted read-only",
    Control.HIDDEN_PID_1: "pid 1",
    Control.SIZED_TMPFS: "no size limit",
    Control.CLOSED_DESCRIPTORS: "inherits descriptors",
    Control.UNIQUE_UID: "kernel's uid 0",
}


@pytest.mark.parametrize("control", SEEN)
async def test_a_wall_that_is_not_there_is_noticed_at_the_start(anyio_backend: str, control: Control) -> None:
    if control is Control.UNIQUE_UID and os.geteuid() != 0:
        pytest.skip("does not apply: such a server has its own uid in every sandbox")
    with pytest.raises(RunnerUnavailable, match=SEEN[control]):
        async with BubblewrapRunner(controls=Controls(frozenset({control}), self_tested=True), spares=0):
            pytest.fail("it passed the self-test")
