"""What the fault tests check at the end: everything that is stored, against what was accepted and what really began."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.ids import LOCAL_PRINCIPAL, ExecutionId
from sandbox_core.ports.store import ListQuery, StateStore
from sandbox_core.testing.history import Verdict, history_of, judge
from tests.integration.mcp.harness import until
from tests.redis_server import RedisServer


class Witness:
    """A file of the host that every program writes its number to: how often each began is known from outside."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    @property
    def grant(self) -> dict[str, dict[str, list[str]]]:
        """The policy that lets a program write to it, and the ceiling that allows that."""
        return {"filesystem": {"allow_write": [str(self.file)]}}

    def command(self, number: int, program: str) -> str:
        """Return shell text that writes the number and goes on with `program`."""
        return f"echo {number} >> {self.file}; {program}"

    def began(self) -> Counter[int]:
        """Return how often each program began."""
        return Counter(int(line) for line in self.file.read_text().split("\n")[:-1])

    def so_many_began(self, count: int) -> bool:
        """Return whether at least `count` programs began."""
        return self.began().total() >= count


@asynccontextmanager
async def store_of(redis: RedisServer) -> AsyncIterator[StateStore]:
    """Open the state of a fleet as its servers do."""
    async with (
        RedisConnection(RedisOptions(SecretStr(redis.url))) as connection,
        RedisStateStore(connection, SystemClock()) as store,
    ):
        yield store


async def verdict_of(
    redis: RedisServer, ids: Mapping[int, str], *, witness: Witness | None = None, seconds: float = 120
) -> Verdict:
    """Wait until nothing waits or runs any more, and judge all that is stored. `ids`: number -> what was accepted."""
    await until(lambda: is_over(redis), "all has ended", seconds=seconds)
    async with store_of(redis) as store:
        histories = [await history_of(store, execution_id) for execution_id in await _stored_ids(store)]
    starts = None if witness is None else Counter({ids[number]: count for number, count in witness.began().items()})
    return judge(list(ids.values()), histories, starts=starts)


def is_over(redis: RedisServer) -> bool:
    """Return whether nothing waits or runs any more."""
    # In one step: what is put back between two questions would be in neither answer.
    left = redis.ask("EVAL", "return redis.call('ZCARD', 'waiting') + redis.call('ZCARD', 'leases')", 0)
    return bool(left == 0)


async def _stored_ids(store: StateStore) -> list[ExecutionId]:
    found: list[ExecutionId] = []
    query = ListQuery(LOCAL_PRINCIPAL, limit=200)
    while True:
        page = await store.list_page(query)
        found += [execution.id for execution in page.executions]
        if page.next_before is None:
            return found
        query = ListQuery(LOCAL_PRINCIPAL, limit=200, before=page.next_before)
