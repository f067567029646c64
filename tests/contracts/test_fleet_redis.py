"""RedisFleet: who lives, what they offer, and that nothing of it lives for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from pydantic_core import to_json

from sandbox_adapters.fleet.record import LONGEST_NAME, BackRecord, decode_record, encode_record, record_fields
from sandbox_adapters.fleet.redis import RedisFleet
from sandbox_adapters.redis_connection import RedisConnection, RedisOptions
from sandbox_adapters.stores.redis import RedisStateStore
from sandbox_core.domain.errors import StoredDataCorrupt
from sandbox_core.domain.ids import ExecutionId, NodeId, Principal
from sandbox_core.ports.fleet import Fleet
from sandbox_core.ports.store import Place, Quota
from sandbox_core.testing.fleet_contract import MakeFleet, SharedFleetContract
from tests.redis_server import RedisServer

BOUND_SECONDS = 60
RECORD = BackRecord(
    node=NodeId("host-1234"),
    host="host",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    labels=("gpu", "large"),
    concurrency=4,
    busy=1,
    queue="redis",
    version="1.0",
    draining=False,
)


def satisfies_the_port(fleet: RedisFleet) -> Fleet:
    """Checked by mypy."""
    return fleet


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def connection(anyio_backend: str, redis_server: RedisServer) -> AsyncIterator[RedisConnection]:
    async with RedisConnection(
        RedisOptions(SecretStr(redis_server.url), prefix="f", timeout_seconds=BOUND_SECONDS)
    ) as opened:
        yield opened


def named(number: int, **changes: object) -> BackRecord:
    return replace(RECORD, node=NodeId(f"n-{number}"), **changes)  # type: ignore[arg-type]  # of the test


class TestRedisFleet(SharedFleetContract):
    @pytest.fixture
    def make_fleet(self, connection: RedisConnection) -> MakeFleet:
        async def make(*backs: frozenset[str]) -> Fleet:
            fleet = RedisFleet(connection)
            for number, labels in enumerate(backs):
                await fleet.announce(named(number, labels=tuple(sorted(labels))))
            return fleet

        return make


@pytest.mark.anyio
class TestBacks:
    async def test_who_announced_itself_is_listed_as_it_was_last(self, connection: RedisConnection) -> None:
        fleet = RedisFleet(connection)
        await fleet.announce(RECORD)
        await fleet.announce(replace(RECORD, concurrency=7))
        await fleet.announce(named(2, host="a", labels=()))
        first, second = await fleet.backs()
        assert (first.host, second.node) == ("a", RECORD.node)
        assert replace(second, heard_seconds_ago=0.0) == replace(RECORD, concurrency=7, busy=0)
        assert 0 <= second.heard_seconds_ago < BOUND_SECONDS

    async def test_its_load_is_that_of_now_and_not_of_when_it_told(self, connection: RedisConnection) -> None:
        fleet, quota = RedisFleet(connection), Quota(per_node=9, per_principal=9, per_session=9)
        await fleet.announce(replace(RECORD, busy=4))
        await fleet.announce(named(2, busy=0))
        async with RedisStateStore(connection) as store:
            for number in range(3):
                place = Place(ExecutionId(f"e-{number}"), NodeId("n-2"), Principal("p"), None)
                assert await store.reserve(place, quota, lease_seconds=60) is None
            assert await store.reserve(replace(place, node=NodeId("other")), quota, lease_seconds=60) is None
            assert {record.node: record.busy for record in await fleet.backs()} == {"host-1234": 0, "n-2": 3}
            await store.release(place)
            assert {record.node: record.busy for record in await fleet.backs()} == {"host-1234": 0, "n-2": 2}

    async def test_who_withdrew_is_not(self, connection: RedisConnection, redis_server: RedisServer) -> None:
        fleet = RedisFleet(connection)
        await fleet.announce(RECORD)
        await fleet.withdraw(RECORD)
        assert await fleet.backs() == []
        assert list(await fleet.offers()) == []
        assert redis_server.ask("KEYS", "*") == []

    async def test_who_is_silent_lives_no_more(self, connection: RedisConnection, redis_server: RedisServer) -> None:
        fleet, mortal = RedisFleet(connection), RedisFleet(connection, life_seconds=0.3)
        await fleet.announce(named(1))
        await mortal.announce(named(2, labels=("rare",)))
        with anyio.fail_after(BOUND_SECONDS):
            while len(await fleet.backs()) > 1 or frozenset({"rare"}) in await fleet.offers():  # noqa: ASYNC110  # Redis tells nobody
                await anyio.sleep(0.02)
            while redis_server.ask("EXISTS", "f:back:n-2"):  # noqa: ASYNC110  # as above
                await anyio.sleep(0.02)
        await fleet.announce(named(1))
        assert redis_server.ask("ZRANGE", "f:backs", 0, -1) == [b"n-1"]

    async def test_every_key_expires_also_of_a_fleet_that_died_at_once(
        self, connection: RedisConnection, redis_server: RedisServer
    ) -> None:
        fleet = RedisFleet(connection)
        for number in range(3):
            await fleet.announce(named(number, labels=("gpu",) if number else ()))
        keys = redis_server.ask("KEYS", "*")
        assert len(keys) == 5
        assert all(0 < redis_server.ask("PTTL", key) <= 45_000 for key in keys)

    async def test_a_large_fleet_is_listed_in_pages(self, connection: RedisConnection) -> None:
        fleet = RedisFleet(connection)
        for first in range(0, 1203, 100):
            async with anyio.create_task_group() as tasks:
                for number in range(first, min(first + 100, 1203)):
                    tasks.start_soon(fleet.announce, named(number))
        assert len(await fleet.backs()) == 1203
        assert list(await fleet.offers()) == [frozenset({"gpu", "large"})]

    @pytest.mark.parametrize("poison", [b"", b"{}", b"[]", b"\xff", b"null"])
    async def test_what_cannot_be_read_is_left_out(
        self, connection: RedisConnection, redis_server: RedisServer, poison: bytes
    ) -> None:
        fleet = RedisFleet(connection)
        await fleet.announce(named(1))
        await fleet.announce(named(2))
        redis_server.ask("SET", "f:back:n-1", poison)
        assert [record.node for record in await fleet.backs()] == ["n-2"]

    async def test_a_beat_costs_six_commands_and_a_question_three(
        self, connection: RedisConnection, redis_server: RedisServer
    ) -> None:
        fleet, plain = RedisFleet(connection), named(1, labels=())
        await fleet.announce(plain)
        await fleet.offers()
        before = redis_server.commands()
        await fleet.announce(plain)
        middle = redis_server.commands()
        await fleet.offers()
        after = redis_server.commands()
        assert (middle - before).total() - (middle - before)["info"] == 6
        assert (after - middle).total() - (after - middle)["info"] == 3


@pytest.mark.anyio
class TestOffers:
    async def test_who_drains_offers_nothing_and_still_lives(self, connection: RedisConnection) -> None:
        fleet = RedisFleet(connection)
        await fleet.announce(RECORD)
        await fleet.announce(replace(RECORD, draining=True))
        assert list(await fleet.offers()) == []
        assert [record.draining for record in await fleet.backs()] == [True]
        await fleet.announce(RECORD)
        assert list(await fleet.offers()) == [frozenset(RECORD.labels)]


@given(
    host=st.text(max_size=400),
    labels=st.frozensets(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True), max_size=16),
    busy=st.integers(0, 1 << 40),
    draining=st.booleans(),
)
def test_any_record_is_bounded_plain_and_comes_back(
    host: str, labels: frozenset[str], busy: int, draining: bool
) -> None:
    record = replace(RECORD, host=host, labels=tuple(sorted(labels)), busy=busy, draining=draining)
    raw = encode_record(record)
    assert len(raw) < 4096
    back = decode_record(raw, 2.5)
    assert back == replace(record, host=back.host, heard_seconds_ago=2.5)
    assert len(back.host) <= LONGEST_NAME
    assert all(character.isascii() and character.isprintable() for character in back.host)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "a\x1b[31m"),
        ("host", "x" * 300),
        ("labels", ["GPU"]),
        ("labels", ["a"] * 17),
        ("started_at", "2026-01-01T00:00:00"),
        ("busy", "1"),
        ("more", 1),
    ],
)
def test_what_no_worker_writes_is_corrupt(field: str, value: object) -> None:
    document = {**record_fields(RECORD), "heard_seconds_ago": 0.0, field: value}
    with pytest.raises(StoredDataCorrupt):
        decode_record(to_json(document), 0)


def test_the_fields_for_json_are_those_of_the_record() -> None:
    assert decode_record(to_json(record_fields(RECORD)), 0) == RECORD
