"""Which tests may run beside others, when `make test` spreads them over processes (pytest-xdist, `loadscope`).

Tests of walls and limits stay in one process, one after the other: they look at what the whole machine has. So do those
of servers, leases and faults, in another one: they look at times. Beside them, file by file, runs what looks only at
what it made itself.
"""

from __future__ import annotations

from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # of pytest-xdist

BESIDE: Final = ("unit", "contracts", "integration/cli", "integration/docs", "integration/mcp", "integration/egress")
"""Folders whose files may run in any process."""

FLEETS: Final = ("integration/replicas", "integration/workers", "integration/redis", "integration/deploy")
"""Folders with several servers each, and time limits."""


def track_of(node_id: str) -> str:
    """Return the track of a test: those of one track run in one process, in order."""
    file = node_id.partition("::")[0]
    if _is_in(file, BESIDE):
        return file
    return "fleets" if _is_in(file, FLEETS) else "walls"


def _is_in(file: str, folders: tuple[str, ...]) -> bool:
    return file.startswith(tuple(f"tests/{folder}/" for folder in folders))


class TrackScheduling(LoadScopeScheduling):  # type: ignore[misc]  # as above
    """Hands out whole tracks, the one with the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return track_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> TrackScheduling | None:
    """Use it where `--dist loadscope` is asked for."""
    return TrackScheduling(config, log) if config.getvalue("dist") == "loadscope" else None
