"""RedisStateStore: the state of many processes, in one Redis."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final, Self

from sandbox_adapters.clock import SystemClock
from sandbox_adapters.redis_connection import RedisConnection, key_part
from sandbox_adapters.redis_time import REDIS_TIME
from sandbox_adapters.stores.codec import decode_execution, encode_event, encode_execution
from sandbox_adapters.stores.redis_call import (
    StoreCalls,
    Value,
    may_wait_ms,
    milliseconds,
    nonce,
    refusal,
    session_parts,
    status_of,
)
from sandbox_adapters.stores.redis_log import RedisLog
from sandbox_adapters.stores.redis_places import RedisPlaces
from sandbox_adapters.stores.redis_undo import Undo
from sandbox_adapters.stores.redis_wakes import ENOUGH_SECONDS, Channel, Wakes
from sandbox_core.domain.errors import (
    ExecutionNotFound,
    IllegalTransition,
    InvalidArgument,
    StoredDataCorrupt,
    StoreUnavailable,
)
from sandbox_core.domain.events import EventDraft
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.clock import Clock
from sandbox_core.ports.store import (
    LARGEST_PAGE_BYTES,
    Claim,
    ExecutionPage,
    Lease,
    ListQuery,
    LogPage,
    Place,
    Quota,
    Scope,
)

PATIENCE_SECONDS: Final = ENOUGH_SECONDS
"""How long a wait that has begun outlasts a Redis that is away."""

_RENEWED_AT_ONCE: Final = 200
_FRESH: Final = 256
_UNSURE: Final = 256
_LARGEST_FRESH_BYTES: Final = 64 * 1024
_HERE_SECONDS: Final = 0.1
_LOOK_AGAIN_SECONDS: Final = 0.25
_UNTOLD_SECONDS: Final = 5.0


class RedisStateStore:
    """StateStore in Redis, for asyncio. Satisfies `StateStore`; enter it, inside its connection, before use.

    Every method is one script, so one round trip and one instant, but for what is said there. Time is Redis's own,
    except for the times that are stored in executions. Nothing is kept without a time to live: pending and finished
    executions have `ttl_seconds`, running ones a week more, which each renewal gives again.

    Args:
        redis: the connection; entered by whoever made it.
        clock: for `started_at` and `expires_at`; the machine's when None.
        ttl_seconds: how long a pending or finished execution is kept after its last access.
        starts_here: what is created here is mostly run here, so that waiting for it begins without a word to Redis.
        time: Lua that tells the time, for tests.
    """

    def __init__(
        self,
        redis: RedisConnection,
        clock: Clock | None = None,
        *,
        ttl_seconds: float = 3600,
        starts_here: bool = True,
        time: str = REDIS_TIME,
    ) -> None:
        self._starts_here = starts_here
        self._clock = clock if clock is not None else SystemClock()
        self._calls = StoreCalls(redis, ttl_seconds=ttl_seconds, time=time)
        self._scripts = self._calls.scripts
        self._log = RedisLog(self._calls, self._clock)
        self._places = RedisPlaces(self._calls)
        self._wakes = Wakes(redis)
        self._undo = Undo(self.discard)
        self._ttl = ttl_seconds
        # Documents that were created here and not claimed yet, so that a claim need not ask for them.
        self._fresh: OrderedDict[ExecutionId, bytes] = OrderedDict()
        # Claims whose answer never came, with the document and the word that they were asked for with.
        self._unsure_claims: dict[tuple[ExecutionId, NodeId], tuple[bytes | None, str]] = {}

    async def __aenter__(self) -> Self:
        self._wakes.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.stop()
        await self._wakes.stop()

    async def create(self, execution: Execution, *, idempotency_key: str | None = None) -> Execution:
        """Store a pending execution."""
        if execution.status is not ExecutionStatus.PENDING:
            raise InvalidArgument("status", f"is {execution.status}; only a pending execution can be created")
        document = encode_execution(execution)
        session, guide = session_parts(execution.session_id)
        key = "" if idempotency_key is None else sha256(idempotency_key.encode(errors="surrogatepass")).hexdigest()
        try:
            answer = await self._calls.run_on(
                self._scripts.create,
                execution.id,
                *(document, key_part(execution.principal), session, guide, key, nonce(), may_wait_ms(execution)),
            )
        except ExecutionNotFound:
            raise InvalidArgument("execution_id", "is not a lower-case UUID") from None
        except BaseException:
            # It may have arrived. Whoever asked is told that it failed, so it must not stay pending under their key.
            self._undo.later(execution.id)
            raise
        match answer:
            case [b"OK"]:
                self._undo.not_any_more(execution.id)
                self._remember(execution.id, document)
                return decode_execution(document, execution.id)
            case [b"FIRST", bytes() as raw_id, bytes() as first]:
                found = decode_execution(first, raw_id.decode(errors="replace"))
                if found.principal != execution.principal:
                    raise StoredDataCorrupt(f"idempotency key of {execution.id}", "it names an execution of another")
                return found
            case _:
                raise InvalidArgument("execution_id", f"{execution.id} is taken")

    async def discard(self, execution_id: ExecutionId) -> None:
        """Forget a pending execution; after StoreUnavailable as soon as Redis answers again."""
        self._fresh.pop(execution_id, None)
        try:
            await self._calls.run_on(self._scripts.discard, execution_id)
        except ExecutionNotFound:
            return
        except StoreUnavailable:
            self._undo.later(execution_id)
            raise

    async def load(self, execution_id: ExecutionId) -> Execution:
        """Return the execution as it is now."""
        answer = await self._calls.run_on(self._scripts.load, execution_id)
        return decode_execution(answer[1], execution_id)

    async def list_page(self, query: ListQuery) -> ExecutionPage:
        """Return a page, newest first. Listing is no access. Pages end early at 16 MiB of documents."""
        session, guide = session_parts(query.session_id)
        statuses = sorted(query.statuses or ExecutionStatus)
        answer = await self._calls.run(
            self._scripts.list,
            *(key_part(query.principal), session, guide, max(query.limit, 1), query.before or "", LARGEST_PAGE_BYTES),
            *statuses,
        )
        word, last, found = answer
        pairs = zip(found[::2], found[1::2], strict=True)
        executions = tuple(decode_execution(document, raw_id.decode()) for raw_id, document in pairs)
        return ExecutionPage(executions, ExecutionId(last.decode()) if word == b"MORE" else None)

    async def claim(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Move pending to running. A second round trip when neither `create` nor `reserve` saw the execution here.

        A claim whose answer never came is asked for again by its own word, so that it is found if it was made.
        """
        known, name = self._fresh.pop(execution_id, None), nonce()
        known, name = self._unsure_claims.pop((execution_id, node), (known, name))
        while True:
            execution, started = None, b""
            if known is not None:
                execution = decode_execution(known, execution_id)
                if execution.status is not ExecutionStatus.PENDING:
                    raise StoredDataCorrupt(f"execution {execution_id}", "its document is not that of a pending one")
                execution = execution.apply(execution.start(node, self._clock.now()))
                started = encode_execution(execution)
            try:
                answer = await self._calls.run_on(
                    self._scripts.claim, execution_id, *(milliseconds(lease_seconds), known or b"", started, name)
                )
            except StoreUnavailable:
                self._unsure_claims[execution_id, node] = (known, name)
                if len(self._unsure_claims) > _UNSURE:
                    self._unsure_claims.pop(next(iter(self._unsure_claims)))
                raise
            match answer:
                case [b"OK", int(token), int(seq)] if execution is not None:
                    return Claim(self._leased(execution_id, node, token, seq, lease_seconds), execution)
                case [b"DOCUMENT", bytes() as document]:
                    known = document
                case _:
                    raise refusal(execution_id, answer)

    async def seize(self, execution_id: ExecutionId, node: NodeId, *, lease_seconds: float) -> Claim:
        """Take over a running execution whose lease has lapsed."""
        answer = await self._calls.run_on(self._scripts.seize, execution_id, *(milliseconds(lease_seconds), nonce()))
        match answer:
            case [b"OK", int(token), int(seq), bytes() as document]:
                # A damaged document is noticed with the lease taken: the others that have lapsed get their turn.
                execution = decode_execution(document, execution_id)
                return Claim(self._leased(execution_id, node, token, seq, lease_seconds), execution)
            case _:
                raise refusal(execution_id, answer)

    async def renew(self, leases: Sequence[Lease], *, lease_seconds: float) -> Sequence[Lease]:
        """Extend leases and places, 200 in one round trip."""
        held = []
        for start in range(0, len(leases), _RENEWED_AT_ONCE):
            part = leases[start : start + _RENEWED_AT_ONCE]
            fields = [field for lease in part for field in (lease.execution_id, lease.token, key_part(lease.node))]
            kept = {
                int(index) for index in await self._calls.run(self._scripts.renew, milliseconds(lease_seconds), *fields)
            }
            expires_at = self._clock.now() + timedelta(seconds=lease_seconds)
            for index, lease in enumerate(part):
                if index in kept:
                    held.append(Lease(lease.execution_id, lease.node, lease.token, expires_at))
                else:
                    self._log.close(lease)
        return held

    async def append(self, lease: Lease, drafts: Sequence[EventDraft], execution: Execution | None = None) -> int:
        """Append events and at most one state, once, however often it is tried after StoreUnavailable."""
        seq = await self._log.append(lease, drafts, execution)
        status = ExecutionStatus.RUNNING if execution is None else execution.status
        self._wakes.tell(lease.execution_id, seq, status)
        return seq

    async def finish_unclaimed(
        self, execution: Execution, drafts: Sequence[EventDraft], *, only_overdue: bool = False
    ) -> None:
        """Store the terminal state of a pending execution. A second round trip for one that was run before."""
        self._fresh.pop(execution.id, None)
        status = execution.status.value if execution.is_terminal else ""
        name, document, seq = nonce(), encode_execution(execution), 0
        while True:
            lines = [encode_event(number, draft) for number, draft in enumerate(drafts, seq + 1)]
            arguments: list[Value] = [name, document, status, int(only_overdue), seq, *lines]
            answer = await self._calls.run_on(self._scripts.finish, execution.id, *arguments)
            match answer:
                case [b"OK", int(seq)]:
                    self._wakes.tell(execution.id, seq, execution.status)
                    return
                case [b"SEQ", int(seq)]:
                    continue  # an attempt before has left a log
                case [b"ILLEGAL"]:
                    raise IllegalTransition(execution.id, ExecutionStatus.PENDING, execution.status)
                case _:
                    raise refusal(execution.id, answer)

    async def read(
        self, execution_id: ExecutionId, *, after: int = 0, max_events: int = 10_000, max_bytes: int = 1 << 23
    ) -> LogPage:
        """Return events over `after`, oldest first; further round trips only for many very short lines."""
        return await self._log.read(execution_id, after=after, max_events=max_events, max_bytes=max_bytes)

    async def read_last(self, execution_id: ExecutionId, *, after: int = 0, max_bytes: int = 1 << 16) -> LogPage:
        """Return the newest events over `after`, in ascending order."""
        return await self._log.read_last(execution_id, after=after, max_bytes=max_bytes)

    async def wait(self, execution_id: ExecutionId, *, after: int, until_terminal: bool = False) -> None:
        """Return when there is an event over `after`, or at the end.

        Raises StoreUnavailable at once when Redis does not answer at the beginning, and after a minute when it goes
        away later.
        """
        async with self._wakes.watch(execution_id) as channel:
            begun, looked, gives_up_at = False, False, 0.0
            # What was created or is written here is heard of without Redis; most of it ends before the moment is over.
            if (self._starts_here and execution_id in self._fresh) or self._log.writes(execution_id):
                try:
                    async with asyncio.timeout(_HERE_SECONDS):
                        while not _is_over(channel, after, until_terminal):
                            await channel.moved.wait()
                        return
                except TimeoutError:
                    begun = True
            while True:
                try:
                    await self._wakes.subscribe(execution_id, channel)
                    # What a subscription tells of a running one is enough; an ended one is looked at, as an access.
                    if channel.known is None or (channel.known[1].is_terminal and not looked):
                        generation = channel.generation
                        seen = await self._look(execution_id)
                        begun, looked, gives_up_at = True, True, 0.0
                        if channel.generation != generation:
                            continue  # news may have fallen between: look again
                        channel.learn(*seen)
                except StoreUnavailable:
                    now = self._clock.monotonic()
                    gives_up_at = gives_up_at or now + PATIENCE_SECONDS - self._wakes.away_seconds
                    if not begun or now >= gives_up_at:
                        raise
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                    continue
                begun, gives_up_at = True, 0.0
                if _is_over(channel, after, until_terminal):
                    return
                moved = channel.moved
                try:
                    async with asyncio.timeout(self._ttl / 2):
                        await moved.wait()
                except TimeoutError:
                    channel.forget()

    async def reserve(self, place: Place, quota: Quota, *, lease_seconds: float) -> Scope | None:
        """Count one more place, or return the first full scope. What was created elsewhere comes with its document."""
        asks = not self._starts_here and place.execution_id not in self._fresh
        answer = await self._places.reserve(place, quota, lease_seconds, with_document=asks)
        if isinstance(answer, bytes):
            self._remember(place.execution_id, answer)
            return None
        return answer

    async def release(self, place: Place) -> None:
        """Give a place back."""
        await self._places.release(place)

    async def places_freed(self) -> None:
        """Return when a place was given back anywhere, or after 5 s: a place that lapses is not told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNTOLD_SECONDS):
                await self._wakes.places_freed.wait()
        self._wakes.places_freed.clear()

    async def lapsed(self, *, limit: int = 100) -> Sequence[ExecutionId]:
        """Return what is overdue, oldest first."""
        found = await self._calls.run(self._scripts.lapsed, max(limit, 0))
        return [ExecutionId(raw_id.decode()) for raw_id in found]

    async def ping(self) -> None:
        """Raise StoreUnavailable when Redis would not answer, take a write, or tell those who wait, now."""
        # Two keys that it names: a cluster that would keep ours in several slots, or elsewhere, refuses them here too.
        names = ("probe", "leases")
        await self._calls.run(self._scripts.probe, keys=[f"{self._calls.redis.namespace}{name}" for name in names])

    async def _look(self, execution_id: ExecutionId) -> tuple[int, ExecutionStatus]:
        answer: list[Any] = await self._calls.run_on(self._scripts.look, execution_id)
        return int(answer[1]), status_of(answer[2], execution_id)

    def _leased(self, execution_id: ExecutionId, node: NodeId, token: int, seq: int, lease_seconds: float) -> Lease:
        lease = Lease(execution_id, node, token, self._clock.now() + timedelta(seconds=lease_seconds))
        self._log.open(lease, seq)
        return lease

    def _remember(self, execution_id: ExecutionId, document: bytes) -> None:
        if len(document) <= _LARGEST_FRESH_BYTES:
            self._fresh[execution_id] = document
            while len(self._fresh) > _FRESH:
                self._fresh.popitem(last=False)


def _is_over(channel: Channel, after: int, until_terminal: bool) -> bool:
    if channel.known is None:
        return False
    seq, status = channel.known
    return status.is_terminal or (not until_terminal and seq > after)
