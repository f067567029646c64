"""Which addresses may be dialled."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.egress.addresses import AddressPolicy

POLICY = AddressPolicy()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"), ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "this network"), ("10.0.0.1", "private"), ("172.16.0.1", "private"), ("172.31.255.255", "private"),
        ("192.168.1.1", "private"), ("100.64.0.1", "carrier-grade NAT"), ("100.127.255.255", "carrier-grade NAT"),
        ("169.254.169.254", "cloud metadata"), ("169.254.170.2", "link-local"), ("100.100.100.200", "cloud metadata"),
        ("168.63.129.16", "cloud metadata"), ("192.0.0.192", "cloud metadata"), ("192.0.0.8", "reserved"),
        ("192.0.2.1", "documentation"), ("198.51.100.1", "documentation"), ("203.0.113.1", "documentation"),
        ("192.88.99.1", "6to4 relay"), ("198.19.0.1", "benchmarking"), ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"), ("240.0.0.1", "reserved"), ("255.255.255.255", "broadcast"),
        ("::", "unspecified"), ("::1", "loopback"), ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::ffff:0:8.8.8.8", "IPv4-translated"), ("::8.8.8.8", "IPv4-compatible"), ("64:ff9b::a9fe:a9fe", "NAT64"),
        ("64:ff9b:1::1", "local-use NAT64"), ("100::1", "discard-only"), ("2001::1", "Teredo"),
        ("2001:20::1", "reserved"), ("2001:db8::1", "documentation"), ("2002:7f00:1::", "6to4"),
        ("3fff::1", "documentation"), ("fd00:ec2::254", "cloud metadata"), ("fd20:ce::254", "cloud metadata"),
        ("fd12:3456::1", "unique local"), ("fc00::1", "unique local"), ("fe80::1", "link-local"),
        ("fec0::1", "site-local"), ("ff02::1", "multicast"), ("4000::1", "not global unicast"),
        ("5f00::1", "not global unicast"), ("fe80::1%lo", "an IPv6 zone"), ("2600::1%1", "an IPv6 zone"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_the_public_internet_is_refused(text: str, reason: str) -> None:
    assert POLICY.refusal(ip_address(text)) == reason


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "11.0.0.1", "2606:4700::1111", "2a00::1"]
)
def test_a_public_address_may_be_dialled(text: str) -> None:
    assert POLICY.refusal(ip_address(text)) is None


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_dialled(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_link_local:
        assert POLICY.refusal(address) is not None


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "::", "64:ff9b::", "::ffff:0:0:0"]))
def test_an_address_wrapped_in_another_is_refused(inner: IPv4Address, prefix: str) -> None:
    assert POLICY.refusal(IPv6Address(int(IPv6Address(prefix)) | int(inner))) is not None


def test_the_override_for_tests_opens_loopback_and_nothing_else() -> None:
    policy = AddressPolicy(loopback_reachable_for_tests=True)
    assert policy.refusal(ip_address("127.0.0.1")) is None
    assert policy.refusal(ip_address("::1")) is None
    for text in ("::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"):
        assert policy.refusal(ip_address(text)) is not None


def test_the_operator_can_refuse_more() -> None:
    policy = AddressPolicy(also_refused=(ip_network("1.1.1.0/24"), ip_network("2606:4700::/32")))
    assert policy.refusal(ip_address("1.1.1.1")) == "refused by the operator"
    assert policy.refusal(ip_address("2606:4700::1")) == "refused by the operator"
    assert policy.refusal(ip_address("1.0.0.1")) is None


WIDE = tuple(map(ip_network, ("0.0.0.0/0", "::/0")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1", None), ("192.168.1.1", None), ("100.64.0.1", None), ("fd12:3456::1", None), ("1.1.1.1", None),
        ("127.0.0.1", "loopback"), ("::1", "loopback"), ("100.100.100.200", "cloud metadata"),
        ("169.254.169.254", "cloud metadata"), ("fd00:ec2::254", "cloud metadata"), ("169.254.1.1", "link-local"),
        ("64:ff9b::a00:1", "NAT64"), ("::ffff:10.0.0.1", "IPv4-mapped"), ("2002:a00:1::", "6to4"),
        ("224.0.0.1", "multicast"), ("0.0.0.0", "unspecified"), ("4000::1", "not global unicast"),
    ],
)  # fmt: skip
def test_the_widest_grant_opens_private_networks_and_nothing_else(text: str, reason: str | None) -> None:
    assert AddressPolicy(also_reachable=WIDE).refusal(ip_address(text)) == reason


def test_a_refusal_of_the_operators_wins_over_a_grant() -> None:
    policy = AddressPolicy(also_reachable=WIDE, also_refused=(ip_network("10.0.0.0/8"),))
    assert policy.refusal(ip_address("10.0.0.1")) == "refused by the operator"


@pytest.mark.parametrize("text", ["10.0.0.5", "8.8.8.8", "127.0.0.1"])
def test_this_machine_is_reached_only_where_its_address_is_granted_singly(text: str) -> None:
    address = ip_address(text)
    assert AddressPolicy(also_reachable=WIDE, is_own=lambda found: found == address).refusal(address) is not None
    single = AddressPolicy(also_reachable=(*WIDE, ip_network(text)), is_own=lambda found: found == address)
    assert single.refusal(address) is None
