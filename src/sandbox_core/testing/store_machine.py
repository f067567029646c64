"""StoreMachine: hypothesis drives any StateStore against a model made of plain dicts.

To run it on a store of your own:

    class MyMachine(StoreMachine):
        @asynccontextmanager
        async def open_harness(self):
            async with MyStore(...) as store:
                yield MyHarness(store)              # see store_harness.StoreHarness

    TestMyStore = MyMachine.TestCase

Every run opens a fresh harness with an empty store, on asyncio, and begins with an execution that runs and has a log.
Needs hypothesis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from sandbox_core.domain.errors import ClaimRefused, ExecutionNotFound, LeaseLost, SandboxError
from sandbox_core.domain.events import EventDraft, EventKind
from sandbox_core.domain.execution import Execution
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal, SessionId
from sandbox_core.domain.status import ExecutionStatus
from sandbox_core.ports.store import Lease, ListQuery, Place, Quota
from sandbox_core.testing.samples import cancelled, ended, pending, requeued, retried
from sandbox_core.testing.store_harness import StoreHarness
from sandbox_core.testing.store_model import StoreModel

ResultT = TypeVar("ResultT")

_PRINCIPALS = st.sampled_from([Principal("alice"), Principal("bob")])
_SESSIONS = st.sampled_from([None, SessionId("s1"), SessionId("s2")])
_NODES = st.sampled_from([NodeId("n1"), NodeId("n2")])
_KEYS = st.sampled_from([None, None, "k1", "k2"])
_SECONDS = st.sampled_from([0.5, 4.0, 10.0, 30.0])
_QUEUE_SECONDS = st.sampled_from([None, 4.0, 30.0])
_DATA = st.one_of(
    st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode()), st.just(b"long line " * 400)
)
_SHARES = [1 / 8192, 1 / 1024, 1 / 256, 1 / 64, 1 / 2, 1.0]
"""Shares of the time to live. Halvings, so that sums of them are exact and both sides meet a deadline at once."""

_STATUSES = st.frozensets(st.sampled_from(ExecutionStatus), max_size=2)
_QUOTA = Quota(per_node=3, per_principal=2, per_session=1)


class StoreMachine(RuleBasedStateMachine):
    """Every operation of the port in any order; the store must answer as the model does, errors included."""

    executions: Bundle[ExecutionId] = Bundle("executions")
    leases: Bundle[Lease] = Bundle("leases")
    places: Bundle[Place] = Bundle("places")

    open_harness: Callable[[], AbstractAsyncContextManager[StoreHarness]]
    """Returns the context of a harness with an empty store. Every subclass gives this."""

    def __init__(self) -> None:
        """Open a fresh store, and a model beside it."""
        super().__init__()
        self._runner = asyncio.Runner()
        try:
            self._context = self.open_harness()
            self._harness = self._do(self._context.__aenter__())
            self._store, self._clock = self._harness.store, self._harness.clock
            self._model = StoreModel(self._harness.ttl_seconds)
            first = self._create(Principal("alice"), SessionId("s1"), "k1", 4.0, retry_safe=True)
            self._first = self._claim(first.id, NodeId("n1"), 10.0)
        except BaseException:
            self._runner.close()
            raise

    def teardown(self) -> None:
        """Close the store."""
        try:
            self._do(self._context.__aexit__(None, None, None))
        finally:
            self._runner.close()

    # Most bugs show only on an execution that runs and has a log: left to chance, few runs come so far.
    @initialize(target=executions, pieces=st.lists(_DATA, min_size=3, max_size=6))
    def begin(self, pieces: list[bytes]) -> ExecutionId:
        """Give the first execution a log."""
        self.append(self._first, pieces, then="on")
        return self._first.execution_id

    @initialize(target=leases)
    def first_lease(self) -> Lease:
        """Return the lease of the first execution."""
        return self._first

    @initialize(target=places)
    def first_place(self) -> Place:
        """Reserve the place of the first execution."""
        return self._reserve(
            Place(self._first.execution_id, self._first.node, Principal("alice"), SessionId("s1")), 10.0
        )

    @rule(
        target=executions,
        principal=_PRINCIPALS,
        session=_SESSIONS,
        key=_KEYS,
        queue_seconds=_QUEUE_SECONDS,
        retry_safe=st.booleans(),
    )
    def create(
        self,
        principal: Principal,
        session: SessionId | None,
        key: str | None,
        queue_seconds: float | None,
        retry_safe: bool,
    ) -> ExecutionId:
        """Store an execution, perhaps under a key that was used."""
        return self._create(principal, session, key, queue_seconds, retry_safe=retry_safe).id

    @rule(execution_id=executions)
    def discard(self, execution_id: ExecutionId) -> None:
        """Forget one, if it is pending and nobody was told of it by its key."""
        self._model.discard(execution_id)
        self._do(self._store.discard(execution_id))

    @rule(execution_id=executions)
    def load(self, execution_id: ExecutionId) -> None:
        """Load one."""
        assert self._outcome(self._store.load(execution_id)) == self._model.load(execution_id)

    @rule(target=leases, execution_id=executions, node=_NODES, seconds=_SECONDS)
    def claim(self, execution_id: ExecutionId, node: NodeId, seconds: float) -> Lease:
        """Claim one; the lease of a refused claim is a forged one."""
        return self._claim(execution_id, node, seconds)

    @rule(target=leases, execution_id=executions, node=_NODES, seconds=_SECONDS)
    def seize(self, execution_id: ExecutionId, node: NodeId, seconds: float) -> Lease:
        """Take one over."""
        expected = self._model.seize(execution_id, seconds)
        return self._check_claim(
            self._store.seize(execution_id, node, lease_seconds=seconds), expected, execution_id, node
        )

    @rule(held=st.lists(leases, max_size=3), seconds=_SECONDS)
    def renew(self, held: list[Lease], seconds: float) -> None:
        """Renew some leases, old ones among them."""
        expected = self._model.renew(held, seconds)
        renewed = self._do(self._store.renew(held, lease_seconds=seconds))
        assert [(lease.execution_id, lease.token) for lease in renewed] == expected

    @rule(lease=leases, pieces=st.lists(_DATA, max_size=4), then=st.sampled_from(["on", "end", "again"]))
    def append(self, lease: Lease, pieces: list[bytes], then: str) -> None:
        """Append events under any lease there ever was, perhaps with the end, or to be run again."""
        now = self._clock.now()
        drafts = [EventDraft(EventKind.STDOUT, now, piece) for piece in pieces]
        current, final = self._model.current(lease.execution_id), None
        if current is not None and current.status is ExecutionStatus.RUNNING:
            if then == "end":
                final = ended(current, self._clock)
                drafts.append(EventDraft(EventKind.EXIT, now, b"exited", {"exit_code": 0}))
            elif then == "again" and current.may_retry:
                final = requeued(current, self._clock)
                drafts.append(retried(self._clock))
        expected = self._model.append(lease, drafts, final)
        assert self._outcome(self._store.append(lease, drafts, final)) == expected

    @rule(execution_id=executions, only_overdue=st.booleans())
    def finish_unclaimed(self, execution_id: ExecutionId, only_overdue: bool) -> None:
        """End one that nobody has claimed."""
        current = self._model.current(execution_id)
        if current is None or current.status is not ExecutionStatus.PENDING:
            stale = pending(self._clock)
            if current is not None:
                stale = Execution(
                    current.id, current.principal, None, current.command, current.policy, current.created_at
                )
            final = cancelled(stale, self._clock)
        else:
            final = cancelled(current, self._clock)
        draft = EventDraft(EventKind.CANCELLED, self._clock.now(), b"cancelled")
        expected = self._model.finish_unclaimed(final, draft, only_overdue=only_overdue)
        finished = self._outcome(self._store.finish_unclaimed(final, [draft], only_overdue=only_overdue))
        assert finished == expected

    @rule(
        execution_id=executions,
        after=st.integers(0, 12),
        max_events=st.integers(1, 5),
        max_bytes=st.sampled_from([0, 30, 5000, 1 << 20]),
    )
    def read(self, execution_id: ExecutionId, after: int, max_events: int, max_bytes: int) -> None:
        """Read a page from anywhere."""
        page = self._outcome(self._store.read(execution_id, after=after, max_events=max_events, max_bytes=max_bytes))
        assert page == self._model.read(execution_id, after, max_events, max_bytes)

    @rule(execution_id=executions, after=st.integers(0, 12), max_bytes=st.sampled_from([0, 30, 5000, 1 << 20]))
    def read_last(self, execution_id: ExecutionId, after: int, max_bytes: int) -> None:
        """Read the end."""
        page = self._outcome(self._store.read_last(execution_id, after=after, max_bytes=max_bytes))
        assert page == self._model.read_last(execution_id, after, max_bytes)

    @rule(
        principal=_PRINCIPALS,
        session=_SESSIONS,
        statuses=_STATUSES,
        limit=st.integers(1, 4),
        before=st.none() | executions,
    )
    def list_page(
        self,
        principal: Principal,
        session: SessionId | None,
        statuses: frozenset[ExecutionStatus],
        limit: int,
        before: ExecutionId | None,
    ) -> None:
        """List a page from anywhere."""
        query = ListQuery(principal, session, statuses, limit, before)
        assert self._do(self._store.list_page(query)) == self._model.list_page(query)

    @rule(
        target=places, execution_id=executions, node=_NODES, principal=_PRINCIPALS, session=_SESSIONS, seconds=_SECONDS
    )
    def reserve(
        self,
        execution_id: ExecutionId,
        node: NodeId,
        principal: Principal,
        session: SessionId | None,
        seconds: float,
    ) -> Place:
        """Reserve a place for an execution, on a node."""
        current = self._model.current(execution_id)
        if current is not None:
            principal, session = current.principal, current.session_id
        place = Place(execution_id, node, principal, session)
        held = self._model.held(place)
        if held is not None:
            place = held
        return self._reserve(place, seconds)

    @rule(place=places)
    def release(self, place: Place) -> None:
        """Give a place back, perhaps again."""
        self._model.release(place)
        self._do(self._store.release(place))

    @rule(share=st.sampled_from(_SHARES))
    def advance(self, share: float) -> None:
        """Let a share of the time to live pass: seconds, so that leases lapse, or all of it."""
        seconds = self._harness.ttl_seconds * share
        self._model.advance(seconds)
        self._do(self._harness.advance(seconds))

    @invariant()
    def lapsed_as_in_the_model(self) -> None:
        """What is overdue is the model's, oldest first."""
        assert self._model.are_lapsed(list(self._do(self._store.lapsed())))

    def _create(
        self,
        principal: Principal,
        session: SessionId | None,
        key: str | None,
        queue_seconds: float | None,
        *,
        retry_safe: bool,
    ) -> Execution:
        execution = pending(
            self._clock,
            principal=principal,
            session_id=session,
            queue_timeout_seconds=queue_seconds,
            retry_safe=retry_safe,
        )
        expected = self._model.create(execution, key)
        assert self._do(self._store.create(execution, idempotency_key=key)) == expected
        return expected

    def _claim(self, execution_id: ExecutionId, node: NodeId, seconds: float) -> Lease:
        expected = self._model.claim(execution_id, node, self._clock.now(), seconds)
        return self._check_claim(
            self._store.claim(execution_id, node, lease_seconds=seconds), expected, execution_id, node
        )

    def _reserve(self, place: Place, seconds: float) -> Place:
        expected = self._model.reserve(place, _QUOTA, seconds)
        assert self._do(self._store.reserve(place, _QUOTA, lease_seconds=seconds)) == expected
        return place

    def _check_claim(
        self, call: Awaitable[object], expected: Execution | str, execution_id: ExecutionId, node: NodeId
    ) -> Lease:
        got = self._outcome(call)
        if isinstance(expected, str):
            assert got == expected
            return Lease(execution_id, node, -1, self._clock.now())
        assert not isinstance(got, str)
        lease: Lease = got.lease  # type: ignore[attr-defined]  # a Claim
        assert got.execution == expected  # type: ignore[attr-defined]  # a Claim
        self._model.take_token(lease)
        return lease

    def _do(self, call: Awaitable[ResultT]) -> ResultT:
        return self._runner.run(_awaited(call))

    def _outcome(self, call: Awaitable[ResultT]) -> ResultT | str:
        try:
            return self._do(call)
        except (ClaimRefused, ExecutionNotFound, LeaseLost) as error:
            return _code(error)


def _code(error: SandboxError) -> str:
    return error.code


async def _awaited(call: Awaitable[ResultT]) -> ResultT:
    return await call
