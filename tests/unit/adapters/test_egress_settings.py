"""The operator's words on the network of executions, and what becomes of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from sandbox_adapters.container import egress_of
from sandbox_adapters.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORTS", "443, 80,443", (80, 443)),
        ("PORTS", "[8443]", (8443,)),
        ("PORTS", "", ()),
        (
            "PRIVATE_NETWORKS",
            "10.1.0.0/16, fd12::/16,127.0.0.1,::1",
            tuple(map(ip_network, ("10.1.0.0/16", "fd12::/16", "127.0.0.1/32", "::1/128"))),
        ),
        ("REFUSED_NETWORKS", "8.8.8.0/24", (ip_network("8.8.8.0/24"),)),
        ("HOSTS", "", {}),
        (
            "HOSTS",
            '{"Mirror.Internal.": "10.0.0.5", "b.example": ["10.0.0.6", "fd12::1"]}',
            {
                "mirror.internal": (ip_address("10.0.0.5"),),
                "b.example": (ip_address("10.0.0.6"), ip_address("fd12::1")),
            },
        ),
    ],
)
def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    monkeypatch.setenv(f"SANDBOX_EGRESS_{name}", text)
    assert getattr(Settings(), f"egress_{name.lower()}") == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORTS", "0"), ("PORTS", "65536"), ("PORTS", "http"), ("PORTS", "[80"),
        ("PRIVATE_NETWORKS", "0.0.0.0/0"), ("PRIVATE_NETWORKS", "10.0.0.0/7"), ("PRIVATE_NETWORKS", "127.0.0.0/8"),
        ("PRIVATE_NETWORKS", "169.254.169.254"), ("PRIVATE_NETWORKS", "8.8.8.8"), ("PRIVATE_NETWORKS", "10.0.0.1/8"),
        ("PRIVATE_NETWORKS", "mirror.internal"), ("PRIVATE_NETWORKS", "::ffff:10.0.0.1"), ("PRIVATE_NETWORKS", "::/0"),
        ("REFUSED_NETWORKS", "here"),
        ("HOSTS", "{"), ("HOSTS", "[]"), ("HOSTS", '{"a b": "10.0.0.1"}'), ("HOSTS", '{"10.0.0.1": "10.0.0.1"}'),
        ("HOSTS", '{"a": "b"}'), ("HOSTS", '{"a": []}'), ("HOSTS", '{"*.a": "10.0.0.1"}'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_variables_name(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"SANDBOX_EGRESS_{name}", text)
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert all(problem.startswith(f"SANDBOX_EGRESS_{name}: ") for problem in caught.value.problems)


def test_what_is_set_reaches_the_proxy() -> None:
    settings = Settings(
        max_concurrent=1,
        egress_ports=(8443,),
        egress_private_networks=(ip_network("10.1.0.0/16"),),
        egress_refused_networks=(ip_network("9.9.9.9/32"),),
        egress_hosts={"mirror.internal": (ip_address("10.1.0.5"),)},
    )
    egress = egress_of(settings)
    assert egress._ports == frozenset({8443})
    assert egress._hosts == settings.egress_hosts
    assert egress._addresses.refusal(ip_address("10.1.0.5")) is None
    assert egress._addresses.refusal(ip_address("10.2.0.5")) == "private"
    assert egress._addresses.refusal(ip_address("9.9.9.9")) == "refused by the operator"
    assert egress._addresses.is_own is not None


def test_nothing_private_is_reachable_by_default() -> None:
    addresses = egress_of(Settings())._addresses
    assert addresses.also_reachable == ()
    assert addresses.is_own is not None
    assert not addresses.loopback_reachable_for_tests
