"""What `sandbox workers` shows of workers in each state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sandbox_adapters.fleet.record import BackRecord
from sandbox_core.domain.ids import NodeId
from sandbox_mcp import cli_workers

WORKS = BackRecord(NodeId("a"), "host", datetime(2026, 1, 1, tzinfo=UTC), ("gpu",), 4, 3, "nats", "1.0", False)


def test_who_drains_and_who_is_silent_is_not_counted_as_working(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drains = replace(WORKS, node=NodeId("b"), draining=True)
    silent = replace(WORKS, node=NodeId("c"), busy=0, heard_seconds_ago=30.0)

    async def living(_: object) -> list[BackRecord]:
        return [WORKS, drains, silent]

    monkeypatch.setattr(cli_workers, "living_backs", living)
    monkeypatch.setattr(cli_workers, "configure_logging", lambda **_: None)
    assert cli_workers.show_workers(json_output=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in lines[1:4]] == ["working", "draining", "silent"]
    assert lines[-1] == "1 working, 1 draining, 1 silent; 6 of 12 places taken."
