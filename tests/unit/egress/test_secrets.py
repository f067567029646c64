"""Which request gets which secret: the same matching as the rules, and never two meanings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_adapters.egress import EgressRules, Secret, SecretHeaders, colliding
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import Principal

LABELS = st.sampled_from(["a", "b", "test", "xtest", "example"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
ENTRIES = st.one_of(NAMES, NAMES.map(lambda name: f"*.{name}"), ADDRESSES)
PRINCIPALS = st.sampled_from([Principal("alice"), Principal("bob")])
SECRETS = st.builds(
    Secret,
    name=st.just("one"),
    domains=st.lists(ENTRIES, min_size=1, max_size=3).map(tuple),
    header=st.sampled_from(["Authorization", "authorization", "X-Key"]),
    value=st.just("s3cret"),
    plain_http=st.booleans(),
    principals=st.one_of(st.none(), st.frozensets(PRINCIPALS, min_size=1)),
)


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.one_of(NAMES, ADDRESSES))
def test_a_secrets_domains_mean_what_allowed_domains_mean(domains: list[str], host: str) -> None:
    headers = SecretHeaders([Secret("one", tuple(domains), "X-Key", "s3cret")])
    allowed = EgressRules(allowed_domains=tuple(domains)).decide(host, 443).allowed
    assert bool(headers.secure(host, 443)) is allowed
    assert not headers.plain(host, 443)


@given(st.lists(SECRETS, min_size=2, max_size=4), st.one_of(NAMES, ADDRESSES), st.one_of(st.none(), PRINCIPALS))
def test_secrets_that_do_not_collide_never_meet_in_one_field(
    secrets: list[Secret], host: str, principal: Principal | None
) -> None:
    serving = [
        secret.header.lower()
        for secret in secrets
        if secret.serves(principal) and SecretHeaders([secret]).secure(host, 443)
    ]
    if colliding(secrets) is None:
        assert len(serving) == len(set(serving))
        assert len(SecretHeaders(secrets).for_principal(principal).secure(host, 443)) == len(serving)


@given(SECRETS)
def test_a_secret_collides_with_itself_and_does_not_show_its_value(secret: Secret) -> None:
    assert colliding([secret, secret]) is not None
    assert "s3cret" not in repr((secret, SecretHeaders([secret])))


@given(st.text(max_size=20))
def test_a_value_is_taken_unchanged_or_not_at_all(value: str) -> None:
    try:
        taken = Secret("one", ("a.test",), "X-Key", value)
    except InvalidArgument:
        return
    assert taken.value == value
    assert value.isascii()
    assert value.strip() == value != ""
    assert value.isprintable()


@pytest.mark.parametrize("host", ["", "a..test", "a.test\0", "A.TEST", "a.test.", "[::1"])
def test_a_host_is_canonical_or_gets_nothing_it_should_not(host: str) -> None:
    headers = SecretHeaders([Secret("one", ("a.test",), "X-Key", "s3cret")])
    assert bool(headers.secure(host, 443)) is (host.lower().removesuffix(".") == "a.test")
