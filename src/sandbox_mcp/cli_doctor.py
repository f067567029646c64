"""`sandbox doctor`: what this machine can enforce, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox_adapters import event_loop
from sandbox_adapters.doctor import Diagnosis, diagnose
from sandbox_adapters.logging import configure_logging
from sandbox_adapters.settings import Settings, unknown_variables
from sandbox_mcp.capabilities import capabilities_payload, capabilities_text

EXIT_CANNOT_WORK = 1


def examine(*, json_output: bool, runner: str | None) -> int:
    """Print the findings; return 1 when the chosen runner cannot work here. Raises SettingsError."""
    chosen: dict[str, Any] = {} if runner is None else {"runner": runner}
    settings = Settings(**chosen)
    configure_logging(level="ERROR")
    diagnosis = event_loop.run(diagnose, settings)
    unknown = unknown_variables()
    if json_output:
        typer.echo(json.dumps({**_found(diagnosis), "unknown_variables": unknown}, indent=2))
    else:
        _print(diagnosis, unknown)
    return 0 if diagnosis.works else EXIT_CANNOT_WORK


def _found(diagnosis: Diagnosis) -> dict[str, Any]:
    able = diagnosis.capabilities
    return {
        "runner": diagnosis.runner,
        "works": diagnosis.works,
        "checks": [asdict(check) for check in diagnosis.checks],
        "capabilities": None if able is None else capabilities_payload(able),
    }


def _print(diagnosis: Diagnosis, unknown: list[str]) -> None:
    console = Console()
    table = Table(title=None, box=None, pad_edge=False)
    for heading in ("", "works", "found", "fix"):
        table.add_column(heading, overflow="fold")
    for check in diagnosis.checks:
        works = Text("yes", style="green") if check.ok else Text("no", style="red")
        shown = works if check.in_use else Text("-")
        fix = "" if check.ok and check.in_use else check.fix
        table.add_row(Text(check.name), shown, Text(check.detail), Text(fix))
    console.print(table)
    if diagnosis.capabilities is not None:
        console.print(Text(f"\n{capabilities_text(diagnosis.capabilities)}"), soft_wrap=True)
    verdict = "can work here" if diagnosis.works else "cannot work here"
    console.print(Text(f"\nThe {diagnosis.runner} runner {verdict}."))
    for sentence in unknown:
        console.print(Text(sentence, style="yellow"))
