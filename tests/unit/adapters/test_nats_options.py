"""NatsOptions: what one URL says of NATS, and what of it may be shown."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from sandbox_adapters.nats_options import NatsOptions


def options(url: str, prefix: str = "") -> NatsOptions:
    return NatsOptions(SecretStr(url), prefix=prefix)


def test_user_and_password_are_decoded_and_in_nothing_that_is_shown_or_handed_on() -> None:
    given = options("nats://us%40er:p%2Fss@One:4333,tls://two,nats://[::1]:5")
    assert given.credentials == ("us@er", "p/ss")
    assert given.servers == ["nats://one:4333", "tls://two:4222", "nats://[::1]:5"]
    assert given.address == "one:4333, two:4222, [::1]:5"
    assert given.wants_tls
    assert "p%2Fss" not in repr(given)


def test_a_user_alone_is_a_token() -> None:
    assert options("nats://t%3Aken@one").credentials == ("t:ken", None)
    assert options("nats://one").credentials == (None, None)


@pytest.mark.parametrize(("url", "replicas"), [("nats://one", 1), ("nats://one,nats://two?replicas=3", 3)])
def test_the_number_of_replicas_may_be_said(url: str, replicas: int) -> None:
    assert options(url).replicas == replicas
    assert not options(url).wants_tls


def test_the_authority_of_certificates_may_be_named() -> None:
    assert options("tls://one?ssl_ca_certs=/etc/ca.pem&replicas=3").authority == "/etc/ca.pem"
    assert options("tls://one").authority is None


@pytest.mark.parametrize(
    "url",
    [
        "nats://", "nats:///x", "nats://one/subject", "redis://one", "nats://one,redis://two", "nats://one:x",
        "nats://one:0", "nats://one?replicas=2", "nats://one?replicas=", "nats://one?tls=no", "nats://one#x", "", ",",
        "nats://one?ssl_ca_certs=ca.pem",
    ],
)  # fmt: skip
def test_what_is_no_url_of_nats_is_refused(url: str) -> None:
    given = options(url)
    with pytest.raises(ValueError, match=r"."):
        str(given.address)


def test_different_prefixes_make_different_names_without_the_syntax_of_subjects() -> None:
    bases = [options("nats://one", prefix).base for prefix in ("", "a", "a.b", "a:b", "a-b", "sandbox")]
    assert len(set(bases)) == len(bases)
    assert not any(set(base) & set(".*> :") for base in bases)
