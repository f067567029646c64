"""Resolving, checking and dialling."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, ip_address

import anyio
import pytest

from sandbox_adapters.egress.addresses import AddressPolicy
from sandbox_adapters.egress.errors import Refused, Trouble, Unreachable
from sandbox_adapters.egress.hosts import IpAddress
from sandbox_adapters.egress.resolver import LookupThreads, Resolver, SystemLookup
from sandbox_adapters.egress.values import EgressLimits
from sandbox_core.domain.errors import InvalidArgument

pytestmark = pytest.mark.anyio

LIMITS = EgressLimits(resolve_timeout_seconds=0.2, connect_timeout_seconds=5, max_addresses=3)


def answering(*texts: str) -> Callable[[str, int], Awaitable[Sequence[IpAddress]]]:
    async def lookup(name: str, port: int) -> list[IpAddress]:
        return [ip_address(text) for text in texts]

    return lookup


async def test_only_good_addresses_are_returned_once_each_in_order_and_bounded() -> None:
    found = ["10.0.0.1", "1.1.1.1", "1.1.1.1", "127.0.0.1", "2606:4700::1", "8.8.8.8", "9.9.9.9"]
    resolver = Resolver(AddressPolicy(), LIMITS, answering(*found))
    addresses = await resolver.resolve("example.com", 443)
    assert [str(address) for address in addresses] == ["1.1.1.1", "2606:4700::1", "8.8.8.8"]


async def test_a_name_with_no_good_address_is_refused_for_its_first_one() -> None:
    resolver = Resolver(AddressPolicy(), LIMITS, answering("169.254.169.254", "10.0.0.1"))
    with pytest.raises(Refused) as caught:
        await resolver.resolve("example.com", 443)
    assert caught.value.decision.rule == "address: cloud metadata"
    assert "169.254.169.254" in caught.value.decision.reason
    assert caught.value.decision.host == "example.com"


async def test_a_denied_address_is_refused_behind_an_allowed_name() -> None:
    resolver = Resolver(AddressPolicy(), LIMITS, answering("1.1.1.1"))
    with pytest.raises(Refused) as caught:
        await resolver.resolve("example.com", 443, denied=lambda address: "no" if address.version == 4 else None)
    assert caught.value.decision.rule == "denied_domains"


async def test_an_address_is_checked_and_never_looked_up() -> None:
    resolver = Resolver(AddressPolicy(), LIMITS, answering())
    assert await resolver.resolve(IPv4Address("1.1.1.1"), 443) == (IPv4Address("1.1.1.1"),)
    with pytest.raises(Refused):
        await resolver.resolve(IPv4Address("10.0.0.1"), 443)


async def test_a_name_without_addresses_or_in_time_is_unreachable() -> None:
    async def never(name: str, port: int) -> list[IpAddress]:
        await anyio.sleep_forever()
        return []

    for lookup in (never, answering()):
        with pytest.raises(Unreachable) as caught:
            await Resolver(AddressPolicy(), LIMITS, lookup).resolve("example.com", 443)
        assert caught.value.trouble is Trouble.NAME


async def test_the_system_is_asked_for_the_full_name_so_that_no_search_domain_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def getaddrinfo(host: object, port: int, **options: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await SystemLookup()("example.com", 443) == [IPv4Address("1.1.1.1")]
    assert asked == [b"example.com."]


async def test_the_checked_address_is_the_one_that_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: object, **options: object) -> list[object]:
        raise AssertionError("resolved a second time")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        resolver = Resolver(AddressPolicy(loopback_reachable_for_tests=True), LIMITS, answering("127.0.0.1"))
        addresses = await resolver.resolve("example.com", port)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with await resolver.connect(addresses, port) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)


async def test_a_refused_connection_is_told_as_one() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        resolver = Resolver(AddressPolicy(), LIMITS)
        with pytest.raises(Unreachable) as caught:
            await resolver.connect([IPv4Address("127.0.0.1")], closed.getsockname()[1])
    assert caught.value.trouble is Trouble.REFUSED


@pytest.mark.parametrize("name", ["max_connections", "idle_timeout_seconds", "max_denials"])
def test_limits_are_over_zero(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        EgressLimits(**{name: 0})


async def test_lookups_that_nobody_waits_for_any_more_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    asked: list[object] = []

    def getaddrinfo(host: object, port: int, **options: object) -> list[object]:
        asked.append(host)
        answer.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    shared = LookupThreads(10)
    first, second = SystemLookup(shared), SystemLookup(shared)

    async def give_up(lookup: SystemLookup) -> None:
        begun = len(asked)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lookup, "slow.example", 443)
            with anyio.fail_after(30):
                # It is in a thread, which nothing that anyio can wait for tells of.
                while len(asked) == begun:  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()

    try:
        for lookup in (first, second) * 5:
            await give_up(lookup)
        for lookup in (first, second, SystemLookup(shared)):
            with pytest.raises(OSError, match="too many names"):
                await lookup("example.com", 443)
        assert len(asked) == 10
    finally:
        answer.set()
    with anyio.fail_after(30):
        while shared.taken:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert await first("example.com", 443) == [IPv4Address("1.1.1.1")]


def test_one_proxys_slow_lookups_leave_room_for_the_others() -> None:
    shared = LookupThreads(100)
    own = LookupThreads(3, shared)
    for _ in range(3):
        own.take(object())
    with pytest.raises(OSError, match="too many names"):
        own.take(object())
    assert (own.taken, shared.taken) == (3, 3)


async def test_more_lookups_than_run_at_once_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: object, port: int, **options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookup = SystemLookup(LookupThreads(8))
    found: list[object] = []

    async def look_up() -> None:
        found.append(await lookup("example.com", 443))

    async with anyio.create_task_group() as tasks:
        for _ in range(60):
            tasks.start_soon(look_up)
    assert len(found) == 60
