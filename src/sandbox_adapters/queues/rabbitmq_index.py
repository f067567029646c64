"""The index of RabbitQueue in Redis: what is in RabbitMQ, in which bucket, and whose turn it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sandbox_adapters.queues import rabbitmq_scripts as scripts
from sandbox_adapters.queues.redis_items import lane_of
from sandbox_adapters.redis_connection import LuaScript, RedisConnection
from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.ports.queue import QueueItem, QueueStats

LIFE_SECONDS: Final = 7 * 86_400
"""How long keys live after their last use, beyond the time to live of a pending execution."""

MISSED_SECONDS: Final = 30.0
"""What the index has of a bucket is forgotten when takers found nothing there for so long."""

SPARE_DEAD: Final = 32
"""Messages of removed items that may lie in a bucket beyond as many as there are others."""

FULL, FULL_FOR_ONE, NO_BUCKET = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket in use. `owner` is None when it has items of several principals, `labels` when of several sets.

    Those with lower places are served before others: the owner among owners, then the bucket among the owner's.
    `count` is of items that wait or are handed over, `lanes` of theirs.
    """

    number: int
    owner: str | None
    labels: frozenset[str] | None
    owner_place: int
    place: int
    count: int
    lanes: int

    def may_suit(self, offers: frozenset[str]) -> bool:
        """Tell whether something for a taker that offers these labels may be there."""
        return self.labels is None or self.labels <= offers


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of a put: the bucket (None: it is here already), or which bound was reached."""

    refused: int
    count: int
    left: int
    bucket: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a removal, and what lies in the bucket since."""

    was_waiting: bool
    bucket: int = 0
    others: int = 0
    dead: int = 0


class RabbitIndex:
    """The index, over a connection. Every method raises StoreUnavailable when Redis is away.

    Args:
        buckets: how many there are.
        hold_seconds: for how long an item that was handed over does not count as waiting; its message may come back
            sooner.
        ttl_seconds: how long a pending execution may live without an access.
    """

    def __init__(
        self, connection: RedisConnection, *, buckets: int, hold_seconds: float = 30.0, ttl_seconds: float = 3600.0
    ) -> None:
        self._connection = connection
        self._buckets = buckets
        self._hold_ms = round(hold_seconds * 1000)
        self._begin = (connection.namespace, round((ttl_seconds + LIFE_SECONDS) * 1000))
        self._key = f"{connection.namespace}queue:rabbitmq:"

    async def put(
        self, item: QueueItem, *, max_depth: int, max_per_principal: int, avoid: Collection[int] = ()
    ) -> Placed:
        """Note an item that is going to be put, and say where; no new lane gets one of the buckets to avoid."""
        queued_at = item.queued_at.astimezone(UTC).isoformat()  # so that texts sort as the times do
        bounds = (max_depth, max_per_principal, self._buckets)
        answer = await self._run(scripts.PUT, item.execution_id, lane_of(item), queued_at, *bounds, *avoid)
        refused, count, left, bucket = map(int, answer)
        return Placed(refused, count, left, None if bucket < 0 else bucket)

    async def buckets(self) -> list[Bucket]:
        """Return the buckets that are in use, the one to be served next first."""
        found = await self._connection.command("HGETALL", f"{self._key}buckets")
        pairs = zip(found[::2], found[1::2], strict=True)
        return sorted((_bucket(number, value) for number, value in pairs), key=lambda one: (one.owner_place, one.place))

    async def is_here(self, execution_id: str, bucket: int) -> bool:
        """Tell whether an item whose message was found is still to be handed out."""
        return bool(await self._run(scripts.IS_HERE, execution_id, bucket))

    async def hand_over(self, execution_id: str) -> None:
        """Note that an item does not wait any more, and that its lane and principal had their turn."""
        await self._run(scripts.HAND_OVER, execution_id, self._hold_ms)

    async def give_back(self, execution_id: str) -> bool:
        """Note that an item waits again, in front of everything; False when it is not held."""
        return bool(await self._run(scripts.GIVE_BACK, execution_id))

    async def forget(self, execution_id: str) -> None:
        """Forget an item."""
        await self._run(scripts.FORGET, execution_id)

    async def remove(self, execution_id: str) -> Removed:
        """Forget an item that waits."""
        was_waiting, bucket, others, dead = map(int, await self._run(scripts.REMOVE, execution_id))
        return Removed(bool(was_waiting), bucket, others, dead)

    async def swept(self, bucket: int) -> None:
        """Note that no message of a removed item is in a bucket."""
        await self._run(scripts.SWEPT, bucket)

    async def missed(self, bucket: int) -> int:
        """Note that nothing was found in a bucket; return how many items are forgotten since that lasts so long."""
        return int(await self._run(scripts.MISSED, bucket, round(MISSED_SECONDS * 1000)))

    async def stats(self) -> QueueStats:
        """Return how many items wait, and since when."""
        depth, oldest = await self._run(scripts.STATS)
        return QueueStats(int(depth), datetime.fromisoformat(oldest.decode()) if oldest else None)

    async def known(self, ids: list[bytes]) -> set[bytes]:
        """Return those of these ids that were put and are not done."""
        found = await self._connection.command("HMGET", f"{self._key}items", *ids)
        return {raw for raw, value in zip(ids, found, strict=True) if value is not None}

    async def _run(self, script: LuaScript, *args: str | int) -> Any:
        return await self._connection.run(script, (), (*self._begin, *args))


def _bucket(number: bytes, value: bytes) -> Bucket:
    try:
        owner, labels, owner_place, place, count, lanes = value.decode().split(" ")
        return Bucket(
            number=int(number),
            owner=None if owner == "*" else owner,
            labels=None if labels == "*" else frozenset(() if labels == "-" else labels.split(",")),
            owner_place=int(owner_place),
            place=int(place),
            count=int(count),
            lanes=int(lanes),
        )
    except ValueError as error:
        raise StoredDataCorrupt("the index of the queue", "a bucket cannot be read") from error
