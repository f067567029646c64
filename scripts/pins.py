"""Compile requirements/runtime.txt and requirements/dev.txt, with hashes and without any registry's address.

runtime.txt has what every extra needs. Run by `make pins` with the oldest supported Python, so that the result holds
for the newer ones too: a package that only an old Python needs is still listed, and markers such as `sys_platform` stay
in the files.
"""

from __future__ import annotations

import re
import subprocess  # noqa: TID251  # a maintenance script, no part of the product
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
HEADER = "# Compiled by `make pins` from pyproject.toml. Do not edit.\n"
PLACE = re.compile(r"https?://|file:|^-", re.MULTILINE)
"""An address, or a line that is an option: a pin begins with the name of its package."""

OF_OLDER_PATCHES = ("async-timeout",)
"""What redis needs before Python 3.11.3, where its marker leaves it out when a newer 3.11 compiles."""

OPTIONS = (
    "--quiet",
    "--generate-hashes",
    "--strip-extras",
    "--allow-unsafe",
    "--no-annotate",
    "--no-header",
    "--no-emit-options",
)


def compile_pins(target: Path, *sources: Path, also: Sequence[str] = ()) -> None:
    """Write the pins of `sources` to `target`, keeping what it already pins when that still fits."""
    argv = [sys.executable, "-m", "piptools", "compile", *OPTIONS, *also, *sys.argv[1:], "--output-file", str(target)]
    subprocess.run([*argv, *map(str, sources)], check=True, cwd=ROOT)
    text = target.read_text(encoding="utf-8")
    if found := PLACE.search(text):
        raise SystemExit(f"{target.name} names a place to download from ({found.group()}); not written for others")
    if not text.startswith(HEADER):
        target.write_text(HEADER + text, encoding="utf-8")


def main() -> None:
    """Compile both files. Arguments go to pip-compile, for example `--upgrade`."""
    if sys.version_info[:2] != OLDEST:
        raise SystemExit(f"make pins needs Python {OLDEST[0]}.{OLDEST[1]}, the oldest that is supported")
    group = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["dev"]
    runtime, dev = ROOT / "requirements" / "runtime.txt", ROOT / "requirements" / "dev.txt"
    with tempfile.TemporaryDirectory() as directory:
        older = Path(directory) / "older.in"
        older.write_text("\n".join(OF_OLDER_PATCHES), encoding="utf-8")
        compile_pins(runtime, ROOT / "pyproject.toml", older, also=["--all-extras"])
        asked = Path(directory) / "dev.in"
        asked.write_text("\n".join([f"-r {runtime}", *group]), encoding="utf-8")
        compile_pins(dev, asked)


if __name__ == "__main__":
    main()
