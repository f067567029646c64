from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_adapters.auth_tokens import load_auth_tokens
from sandbox_adapters.container import shares_of
from sandbox_adapters.settings import Settings, SettingsError


def settings_with(file: Path | None = None, token: str | None = None, **rest: int) -> Settings:
    return Settings.model_validate({"auth_tokens_file": file, "auth_token": token, **rest})


def test_no_token_is_no_principal() -> None:
    assert load_auth_tokens(Settings()) == {}


def test_the_one_token_and_the_file_s_add_up(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text('{"alice": "a-token", "bob": "b-token"}')
    tokens = load_auth_tokens(settings_with(file, "single"))
    assert {name: token.get_secret_value() for name, token in tokens.items()} == {
        "default": "single",
        "alice": "a-token",
        "bob": "b-token",
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must be a JSON object"),
        ('["tok-en"]', "must be a JSON object"),
        ('"tok-en"', "must be a JSON object"),
        ('{"alice": ""}', "printable"),
        ('{"alice": 5}', "printable"),
        ('{"alice": "tok en"}', "printable"),
        ('{"al ice": "tok-en"}', "principal|must be 1 to 128"),
        ('{"alice": "tok-en", "alice": "tok-en-2"}', "given twice"),
        ('{"alice": "tok-en", "bob": "tok-en"}', "same token"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_showing_a_token(
    tmp_path: Path, content: str, problem: str
) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        load_auth_tokens(settings_with(file))
    assert str(caught.value).startswith("SANDBOX_AUTH_TOKENS_FILE: ")
    assert "tok-en" not in str(caught.value)


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_auth_tokens(settings_with(tmp_path / "none"))
    huge = tmp_path / "huge"
    huge.write_bytes(b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(SettingsError, match="is over"):
        load_auth_tokens(settings_with(huge))


def test_all_but_one_of_the_principals_cannot_take_the_last_place(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text('{"a": "1", "b": "2", "c": "3"}')
    shares = shares_of(settings_with(file, max_concurrent=10, max_queued=100))
    assert (shares.quota.per_node, shares.quota.per_principal, shares.quota.per_session) == (10, 4, 5)
    assert shares.queued_per_principal == 49
    assert shares_of(settings_with(file, max_per_principal=7)).quota.per_principal == 7


def test_a_single_principal_may_have_every_place() -> None:
    shares = shares_of(settings_with(token="single"))
    assert shares.quota.per_principal == 10
    assert shares.queued_per_principal == 100
