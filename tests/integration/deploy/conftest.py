"""Fixtures: a place where programs are started as deploy/ says, and ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deploy.written import Engine


@pytest.fixture
def anyio_backend() -> str:
    """The server and the SDK's clients are asyncio programs."""
    return "asyncio"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path) as started:
        yield started
