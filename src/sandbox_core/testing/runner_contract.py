"""The contract suite of ProcessRunner.

To test a runner of your own, subclass and give it one fixture:

    class TestMyRunner(ProcessRunnerContract):
        isolates = False

        @pytest.fixture
        async def runner(self, anyio_backend):
            async with MyRunner(...) as runner:
                yield runner

The tests are async and marked `anyio`; the `anyio_backend` fixture chooses asyncio or trio. They start real programs:
`sh`, the usual small tools and `python3` must be on the command's PATH, and /proc must be there to see what is left.
"""

from __future__ import annotations

from sandbox_core.testing.runner_contract_exits import ExitContract
from sandbox_core.testing.runner_contract_life import LifeContract
from sandbox_core.testing.runner_contract_streams import StreamContract


class ProcessRunnerContract(ExitContract, StreamContract, LifeContract):
    """Everything that a ProcessRunner promises. See the module's text for how to use it."""
