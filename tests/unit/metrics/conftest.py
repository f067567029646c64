"""Fixtures: both event loops, and an environment without settings of the machine that runs the tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the caller's environment would set."""
    for name in list(os.environ):
        if name.upper().startswith("SANDBOX_") or name == "REDIS_URL":
            monkeypatch.delenv(name)
