"""Bearer tokens as the operator gives them: one, or a file of principals."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import SecretStr

from sandbox_adapters.settings import Settings, SettingsError, is_usable_token, variable_name
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import Principal, parse_principal

TOKEN_PRINCIPAL = Principal("default")
"""The principal of whoever sends the one token of `SANDBOX_AUTH_TOKEN`."""

_LARGEST_FILE_BYTES = 4 * 1024 * 1024


def load_auth_tokens(settings: Settings) -> Mapping[Principal, SecretStr]:
    """Return every principal with its token; empty when the server asks for none.

    Raises SettingsError when the file cannot be read, is not a JSON object of principal name to token, is empty, or
    gives two principals one token. No message shows a token.
    """
    tokens: dict[Principal, SecretStr] = {}
    if settings.auth_token is not None:
        tokens[TOKEN_PRINCIPAL] = settings.auth_token
    if settings.auth_tokens_file is not None:
        _add_file(settings, tokens)
    values = [token.get_secret_value() for token in tokens.values()]
    if len(set(values)) != len(values):
        raise _problem("two principals have the same token; give each its own")
    return tokens


def _add_file(settings: Settings, tokens: dict[Principal, SecretStr]) -> None:
    path = settings.auth_tokens_file
    assert path is not None  # noqa: S101  # checked by the only caller
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise _problem(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_FILE_BYTES:
        raise _problem(f"{str(path)!r} is over {_LARGEST_FILE_BYTES} bytes")
    try:
        pairs = json.loads(data, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise _problem(f"{str(path)!r} is not JSON") from None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise _problem(f'{str(path)!r} must be a JSON object like {{"alice": "a long random token"}}')
    for name, token in pairs:
        try:
            principal = parse_principal(name)
        except InvalidArgument as error:
            raise _problem(f"{str(path)!r}: the name {name[:64]!r} {error.problem}") from None
        if principal in tokens:
            raise _problem(f"{str(path)!r}: the name {name!r} is given twice")
        if not isinstance(token, str) or not is_usable_token(token):
            raise _problem(f"{str(path)!r}: the token of {name!r} must be 1 to 4096 printable ASCII characters")
        tokens[principal] = SecretStr(token)


def _problem(text: str) -> SettingsError:
    return SettingsError(f"{variable_name('auth_tokens_file')}: {text}")
