"""Tokens and names, without a socket."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from sandbox_adapters.settings import Settings, SettingsError
from sandbox_core.domain.ids import Principal
from sandbox_mcp.auth import TokenTable
from sandbox_mcp.http_names import allowed_names

TOKENS = TokenTable({Principal("alice"): SecretStr("token-a"), Principal("bob"): SecretStr("token-b")})


def test_token_tells_the_principal() -> None:
    assert TOKENS.principal_of(b"token-a") == "alice"
    assert TOKENS.principal_of(b"token-b") == "bob"


@pytest.mark.parametrize("token", [b"", b"token-", b"token-aa", b" token-a", b"TOKEN-A", b"\xff\x00", b"x" * 100_000])
def test_anything_else_is_nobodys(token: bytes) -> None:
    assert TOKENS.principal_of(token) is None


def settings(**fields: object) -> Settings:
    return Settings(log_file="", **fields)  # type: ignore[arg-type]  # fields of several types, checked by the model


def test_loopback_serves_loopback_names_and_listed_ones() -> None:
    names = allowed_names(settings(allowed_hosts=("box.example",)))
    for host in ("localhost", "127.0.0.1:1", "[::1]", "BOX.example:99"):
        assert names.host_goes(host), host
    for host in ("evil.example", "10.0.0.1", "localhost:", "localhost:x", "a localhost", "localhost\n"):
        assert not names.host_goes(host), host


def test_open_address_with_a_token_serves_every_name_unless_some_are_listed() -> None:
    assert allowed_names(settings(host="0.0.0.0", auth_token="t")).host_goes("any.example")
    listed = allowed_names(settings(host="0.0.0.0", auth_token="t", allowed_hosts=("box.example",)))
    assert listed.host_goes("box.example")
    assert not listed.host_goes("any.example")


def test_open_address_without_a_token_serves_addresses_but_no_names() -> None:
    names = allowed_names(settings(host="0.0.0.0", allow_unauthenticated=True))
    assert names.host_goes("192.0.2.7:8080")
    assert names.host_goes("[2001:db8::1]:8080")
    assert not names.host_goes("rebound.example")


@pytest.mark.parametrize("field", ["allowed_hosts", "allowed_origins"])
def test_star_needs_a_token(field: str) -> None:
    with pytest.raises(SettingsError, match="needs a token"):
        allowed_names(settings(**{field: ("*",)}))
    names = allowed_names(settings(auth_token="t", **{field: ("*",)}))
    assert names.host_goes("any.example") if field == "allowed_hosts" else names.origin_goes("https://any.example")


def test_origins_of_loopback_pages_go_only_on_loopback() -> None:
    assert allowed_names(settings()).origin_goes("http://localhost:5173")
    assert not allowed_names(settings(host="0.0.0.0", auth_token="t")).origin_goes("http://localhost:5173")
