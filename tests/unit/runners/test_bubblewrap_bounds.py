"""The limits that every process of a sandbox gets, whatever its policy and the server's own user have."""

from __future__ import annotations

import resource

import pytest

from sandbox_adapters.runners.bubblewrap_bounds import Bounds
from sandbox_adapters.runners.bubblewrap_walls import Walls
from sandbox_adapters.runners.controls import ALL, Control, Controls
from sandbox_core.domain.policy import ResourceLimits


@pytest.mark.parametrize("as_root", [True, False])
def test_nobody_gets_real_time_or_a_better_priority_from_the_servers_user(as_root: bool) -> None:
    controls = Controls(frozenset({Control.CGROUP_TREE}))
    with Walls(controls) as walls:
        bounds = Bounds(walls, ALL, (), as_root=as_root)
        request = bounds.request(ResourceLimits(), -1, bwrap=b"", command=(), proxy_port=0, grants=b"")
    limits = {which: (soft, hard) for which, soft, hard in request.limits}
    assert limits[resource.RLIMIT_RTPRIO] == limits[resource.RLIMIT_NICE] == (0, 0)
