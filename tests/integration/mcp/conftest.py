"""Fixtures: one shared server for tests that leave it as it was, and the event loop that HTTP needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.mcp.harness import Served, serving


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server")) as served:
        yield served
