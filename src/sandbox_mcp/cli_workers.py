"""`sandbox workers`: who works, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox_adapters import event_loop
from sandbox_adapters.fleet.record import BackRecord, record_fields
from sandbox_adapters.logging import configure_logging
from sandbox_adapters.settings import Settings
from sandbox_adapters.workers import living_backs
from sandbox_core.domain.errors import InfrastructureError

EXIT_FAILED = 1

_STALE_SECONDS = 20.0
"""Older than a heartbeat that comes in time."""

_UNBOUNDED_COLUMNS = 10_000


def show_workers(*, json_output: bool) -> int:
    """Print the living workers; return 1 when Redis does not answer. Raises SettingsError without Redis."""
    settings = Settings()
    configure_logging(level="ERROR")
    try:
        records = event_loop.run(living_backs, settings)
    except InfrastructureError as error:
        typer.echo(f"sandbox: {error}", err=True)
        return EXIT_FAILED
    if json_output:
        typer.echo(json.dumps({"workers": [record_fields(record) for record in records]}, indent=2))
    else:
        _print(records)
    return 0


def _print(records: Sequence[BackRecord]) -> None:
    # Who reads it through a pipe wants a line for each, however long.
    console = Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED_COLUMNS)
    if not records:
        console.print(
            "No worker was heard of. They appear within a second of their start, and need the same REDIS_URL."
        )
        return
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("node", "host", "labels", "busy", "state", "heard", "up", "queue", "version"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("busy", "heard", "up") else "left")
    now = datetime.now(UTC)
    for record in records:
        table.add_row(
            Text(record.node),
            Text(record.host),
            Text(", ".join(record.labels) or "-"),
            Text(f"{record.busy}/{record.concurrency}"),
            _state(record),
            Text(f"{record.heard_seconds_ago:.0f} s ago"),
            Text(_duration(max(0.0, (now - record.started_at).total_seconds()))),
            Text(record.queue),
            Text(record.version),
        )
    console.print(table)
    busy, places = sum(record.busy for record in records), sum(record.concurrency for record in records)
    states = Counter(_state(record).plain for record in records)
    told = ", ".join(f"{states[state]} {state}" for state in ("working", "draining", "silent") if states[state])
    console.print(Text(f"\n{told}; {busy} of {places} places taken."))


def _state(record: BackRecord) -> Text:
    if record.draining:
        return Text("draining", style="yellow")
    if record.heard_seconds_ago > _STALE_SECONDS:
        return Text("silent", style="red")
    return Text("working", style="green")


def _duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
