"""What the tests of the documents share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The HTTP server and the SDK's clients are asyncio programs."""
    return "asyncio"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment like a user's who put .venv/bin on the PATH, without any setting of the sandbox."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', '')}"
    own["SANDBOX_LOG_FILE"] = str(tmp_path / "server.log")
    return own
