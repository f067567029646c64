"""The contract suite of ExecutionQueue.

To test a queue of your own, subclass and give it one fixture, a factory of empty queues with the bounds it is called
with:

    class TestMyQueue(ExecutionQueueContract):
        @pytest.fixture
        async def make_queue(self, anyio_backend):
            async def make(*, max_depth=100, max_per_principal=None):
                return MyQueue(...)
            yield make

The tests are async and marked `anyio`; the `anyio_backend` fixture chooses asyncio or trio.
"""

from __future__ import annotations

from sandbox_core.testing.queue_contract_bounds import QueueBoundsContract
from sandbox_core.testing.queue_contract_delivery import QueueDeliveryContract
from sandbox_core.testing.queue_contract_fairness import QueueFairnessContract
from sandbox_core.testing.queue_contract_labels import QueueLabelsContract


class ExecutionQueueContract(QueueDeliveryContract, QueueFairnessContract, QueueBoundsContract, QueueLabelsContract):
    """Everything that an ExecutionQueue promises. See the module's text for how to use it."""
