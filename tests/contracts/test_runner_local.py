"""LocalRunner keeps the ProcessRunner contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_adapters.runners.local import LocalRunner
from sandbox_core.ports.runner import ProcessRunner
from sandbox_core.testing.runner_contract import ProcessRunnerContract


def satisfies_the_port(runner: LocalRunner) -> ProcessRunner:
    """Checked by mypy."""
    return runner


class TestLocalRunner(ProcessRunnerContract):
    isolates = False

    @pytest.fixture
    async def runner(self, anyio_backend: str) -> AsyncIterator[LocalRunner]:
        async with LocalRunner() as runner:
            yield runner
