"""The official conformance suite, both eras, by the script that the repository ships."""

from __future__ import annotations

import shutil
import subprocess  # noqa: TID251  # the script is a program
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[3] / "scripts" / "conformance.py"


@pytest.mark.timeout(420)
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which brings the suite, is not installed")
def test_official_suite_passes_on_both_eras() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2026-07-28 server-stateless" in done.stdout
    assert "2025-11-25 server-initialize" in done.stdout
