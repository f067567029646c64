"""Names, addresses and ports: what the rules allow, and every trick that must not."""

# ruff: noqa: RUF001 - look-alike letters are what is tested
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.egress.hosts import HostRefused, authority_text, host_text, parse_host, split_authority
from sandbox_adapters.egress.rules import EgressRules
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.policy import NetworkPolicy

RULES = EgressRules(
    allowed_domains=("example.com", "*.wild.example", "bücher.example", "192.0.2.7", "[2001:db8::7]"),
    denied_domains=("evil.wild.example", "*.deep.wild.example"),
)

LABEL = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize(
    "host",
    [
        "example.com", "EXAMPLE.com", "example.com.", "example。com", "example．com", "ｅｘａｍｐｌｅ.com",
        "a.wild.example", "a.b.c.wild.example", "evilwild.wild.example", "bücher.example", "xn--bcher-kva.example",
        "BÜCHER.example", "192.0.2.7", "2001:db8::7", "[2001:DB8:0::7]",
    ],
)  # fmt: skip
def test_every_spelling_of_an_allowed_host_is_allowed(host: str) -> None:
    assert RULES.decide(host, 443).allowed


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("wild.example", "allowed_domains"),
        ("evilwild.example", "allowed_domains"),
        ("example.com.evil.org", "allowed_domains"),
        ("notexample.com", "allowed_domains"),
        ("sub.example.com", "allowed_domains"),
        ("example.co", "allowed_domains"),
        ("com", "allowed_domains"),
        ("localhost", "allowed_domains"),
        ("metadata.google.internal", "allowed_domains"),
        ("evil.wild.example", "denied_domains: evil.wild.example"),
        ("EVIL。wild.example.", "denied_domains: evil.wild.example"),
        ("x.deep.wild.example", "denied_domains: *.deep.wild.example"),
        ("192.0.2.8", "allowed_domains"),
        ("127.0.0.1", "allowed_domains"),
        ("2001:db8::8", "allowed_domains"),
        ("::ffff:192.0.2.7", "allowed_domains"),
        ("[::ffff:c000:207]", "allowed_domains"),
        ("::192.0.2.7", "allowed_domains"),
    ],
)
def test_other_hosts_are_refused_by_the_rule_that_decided(host: str, rule: str) -> None:
    decision = RULES.decide(host, 443)
    assert not decision.allowed
    assert decision.rule == rule


# 192.0.2.7 is allowed; no other spelling of it is, whatever inet_aton(3) makes of it.
@pytest.mark.parametrize(
    "host",
    [
        "3221225991", "0xc0000207", "030000001007", "192.519", "192.0.519", "0300.0.2.7", "0xc0.0.2.7", "192.0.2.07",
        "0XC0000207", "192.0.2.7.1", "192.0.2.256", "1", "0", "0x", "127.1", "2130706433", "0x7f.1", "0177.0.0.1",
        "１２７.1", "169。254。169。254。1", "example.123", "example.0x7f", "4294967296", "00000000300.0.2.7",
    ],
)  # fmt: skip
def test_an_address_in_disguise_is_refused_for_its_syntax(host: str) -> None:
    assert RULES.decide(host, 80).rule == "host_syntax"


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "..", "example..com", ".example.com", "example.com..", "-example.com", "example-.com",
        "a" * 64 + ".com",
        "x." * 130 + "com", "example.com%00.evil.org", "exam%70le.com", "example.com\0.evil.org", "example.com\n",
        " example.com", "example.com ", "example.com\t", "example.com/", "example.com\\.evil.org", "user@example.com",
        "example.com#", "example.com?", "*.wild.example", "*", "exa*mple.com", "example.com:80", "example,com",
        "[example.com]", "[::1", "::1]", "[::1]x", "fe80::1%eth0", "[fe80::1%25eth0]", "::1%", "1:2", ":::", "[]",
        "2001:db8::g", "ex\u200bample.com\u200d", "a\u200cb.com", "\udc80.com", "exa％6dple.com", "example.com\u2100",
        "\N{SNOWMAN}\ufffd", "xn--\u00fc.com",
    ],
)  # fmt: skip
def test_text_that_is_no_host_is_refused_for_its_syntax(host: str) -> None:
    decision = RULES.decide(host, 80)
    assert (decision.allowed, decision.rule) == (False, "host_syntax")
    assert decision.host.isascii()
    assert decision.host.isprintable()
    assert len(decision.host) <= 255


@pytest.mark.parametrize("port", [0, 1, 22, 25, 79, 81, 442, 444, 6379, 8080, 65535, 65536 + 80, -80])
def test_only_listed_ports_are_allowed(port: int) -> None:
    decision = RULES.decide("example.com", port)
    assert (decision.allowed, decision.rule) == (False, "ports")


def test_ports_can_be_chosen_and_raw_ports_come_in_addition() -> None:
    rules = EgressRules(("example.com",), ports=frozenset({8443}), raw_ports=frozenset({22}))
    assert [port for port in (22, 80, 443, 8443) if rules.decide("example.com", port).allowed] == [22, 8443]


@pytest.mark.parametrize(
    "entry", ["*", "*.", "", "*.*.com", "foo.*.com", "*.127.0.0.1", "http://x.com", "x.com:80", "0x7f.1"]
)
def test_an_entry_that_can_never_match_is_refused_when_the_rules_are_made(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="allowed_domains"):
        EgressRules(allowed_domains=(entry,))
    with pytest.raises(InvalidArgument, match="denied_domains"):
        EgressRules(denied_domains=(entry,))


def test_nothing_is_allowed_without_entries() -> None:
    assert not EgressRules().decide("example.com", 443).allowed


def test_rules_come_from_a_policy() -> None:
    rules = EgressRules.from_policy(NetworkPolicy(allowed_domains=("*.a.example",), denied_domains=("x.a.example",)))
    assert rules.decide("y.a.example", 80).allowed
    assert not rules.decide("x.a.example", 80).allowed


def test_a_denied_address_is_refused_however_it_was_reached() -> None:
    rules = EgressRules(("example.com",), denied_domains=("192.0.2.9",))
    assert rules.denies_address(parse_host("192.0.2.9")) is not None  # type: ignore[arg-type]  # an address
    assert rules.denies_address(parse_host("192.0.2.8")) is None  # type: ignore[arg-type]  # an address


@given(st.text(max_size=300), st.integers(-1, 70000))
def test_deciding_never_raises_and_never_allows_what_no_entry_covers(host: str, port: int) -> None:
    decision = RULES.decide(host, port)
    assert decision.host.isascii()
    if decision.allowed:
        assert port in (80, 443)
        assert decision.host.endswith(
            (".wild.example", "example.com", "xn--bcher-kva.example", "192.0.2.7", "2001:db8::7")
        )


@given(NAME, NAME)
def test_a_wildcard_covers_exactly_the_names_below_it(base: str, prefix: str) -> None:
    base = f"{base}.test"
    rules = EgressRules((f"*.{base}",))
    assert rules.decide(f"{prefix}.{base}", 80).allowed == (len(f"{prefix}.{base}") <= 253)
    assert not rules.decide(base, 80).allowed
    assert rules.decide(f"{prefix}{base}", 80).allowed == f"{prefix}{base}".endswith(f".{base}")
    assert not rules.decide(f"{base}.{prefix}x", 80).allowed


@given(NAME)
def test_denied_wins_over_the_same_name_allowed(name: str) -> None:
    name = f"{name}.test"
    rules = EgressRules((name, "*.test"), (name,))
    assert not rules.decide(name, 80).allowed


@given(st.text(max_size=80))
def test_the_canonical_form_is_its_own_canonical_form(text: str) -> None:
    try:
        host = parse_host(text)
    except HostRefused:
        return
    assert parse_host(host_text(host)) == host


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_authority_reads_back(address: object, port: int) -> None:
    host = parse_host(str(address))
    text, read = split_authority(authority_text(host, port), None)
    assert (parse_host(text), read) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["a@b:80", "b:", "b:0", "b:65536", "b:+80", "b:8 0", "b:٣", "b:80:80", "[::1]80", "[::1]:", "[::1:80", "b", "b:-1"],
)  # fmt: skip
def test_an_authority_that_has_two_readings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_host(split_authority(text, None)[0])
    assert str(caught.value)
