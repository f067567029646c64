"""living_backs: who works for the servers that share a Redis."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from sandbox_adapters.container import SandboxContainer
from sandbox_adapters.fleet.record import BackRecord
from sandbox_adapters.redis_options import check_redis
from sandbox_adapters.settings import Settings, SettingsError


async def living_backs(settings: Settings) -> Sequence[BackRecord]:
    """Return the workers, and the servers that run executions themselves, sorted by host; nothing else is opened.

    Raises SettingsError where the state is in memory, StoreUnavailable when Redis does not answer.
    """
    if not settings.shares_state:
        raise SettingsError(
            "REDIS_URL is not set: workers are known where the servers keep their state. Set it as they have it."
        )
    check_redis(settings)
    container = SandboxContainer(settings=settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(container.connection())
        records: Sequence[BackRecord] = await container.fleet().backs()
    return records
