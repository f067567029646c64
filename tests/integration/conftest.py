"""Fixtures of tests that run real sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_adapters.runners.bubblewrap import BubblewrapRunner


@pytest.fixture(scope="module")
async def runner(anyio_backend: str) -> AsyncIterator[BubblewrapRunner]:
    """Make sandboxes for all tests of a file under one event loop: nothing that runs inside may harm it."""
    async with BubblewrapRunner() as opened:
        yield opened
