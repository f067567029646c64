"""The contract suite of StateStore.

To test a store of your own, subclass and give it one fixture:

    class TestMyStore(StateStoreContract):
        @pytest.fixture
        async def harness(self, anyio_backend):
            async with MyStore(...) as store:
                yield MyHarness(store)          # see store_harness.StoreHarness

The tests are async and marked `anyio`; the `anyio_backend` fixture chooses asyncio or trio. Every test gets a
harness with an empty store.
"""

from __future__ import annotations

from sandbox_core.testing.store_contract_documents import DocumentContract
from sandbox_core.testing.store_contract_expiry import ExpiryContract
from sandbox_core.testing.store_contract_leases import LeaseContract
from sandbox_core.testing.store_contract_listing import ListingContract
from sandbox_core.testing.store_contract_logs import LogContract
from sandbox_core.testing.store_contract_places import PlaceContract
from sandbox_core.testing.store_contract_queueing import QueueingContract
from sandbox_core.testing.store_contract_waits import WaitContract


class StateStoreContract(
    DocumentContract,
    ExpiryContract,
    ListingContract,
    LeaseContract,
    LogContract,
    PlaceContract,
    QueueingContract,
    WaitContract,
):
    """Everything that a StateStore promises. See the module's text for how to use it."""
