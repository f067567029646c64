"""Put tables where the docs show them: of `make bench`, `benchmarks.phases` or `benchmarks.scaling` (on stdin)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- end -->)", re.DOTALL)
SCALING = re.compile(r"(<!-- scaling -->\n).*?(<!-- end -->)", re.DOTALL)
PHASES = re.compile(r"(<!-- phases -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Replace what stands between the markers. Raises SystemExit when there is no table."""
    text = sys.stdin.read()
    if text.startswith("| phase"):
        path = ROOT / "docs" / "performance.md"
        path.write_text(PHASES.sub(lambda found: f"{found[1]}{text}{found[2]}", path.read_text("utf-8")), "utf-8")
        return
    if text.startswith("| measured"):
        path = ROOT / "docs" / "scaling.md"
        path.write_text(SCALING.sub(lambda found: f"{found[1]}{text}{found[2]}", path.read_text("utf-8")), "utf-8")
        return
    lines = [line for line in text.splitlines() if line.startswith("|")]
    machine = next((line for line in text.splitlines() if " cores, Python " in line), "")
    if len(lines) < 3 or not machine:
        raise SystemExit("no table on standard input; use: make bench | python scripts/record_benchmarks.py")
    table = "\n".join([*lines, "", f"Measured on {machine}.", ""])
    for path in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        path.write_text(PLACE.sub(lambda found: f"{found[1]}{table}{found[2]}", path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
