"""Run every benchmark, each in a process of its own, and print one table. Ends with 1 when a target was missed."""

from __future__ import annotations

import json
import os
import platform
import subprocess  # noqa: TID251  # each benchmark is a program of its own
import sys

from benchmarks.report import Row, finish

BENCHMARKS = ("latency", "start_up", "throughput", "bulk_output", "deep_log", "many_sleepers", "redis_state", "workers")


def main() -> int:
    """Run them one after another; one that breaks is a missed target, not the end of the others."""
    rows: list[Row] = []
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"running {name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--json"], stdout=subprocess.PIPE, check=False
        )
        if done.returncode == 0:
            rows.extend(Row(**row) for row in json.loads(done.stdout))
        else:
            rows.append(Row(name, f"broke, exit code {done.returncode}", "", "", passed=False))
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    return finish(rows)


if __name__ == "__main__":
    sys.exit(main())
