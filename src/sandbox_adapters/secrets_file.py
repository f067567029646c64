"""The operator's secrets, from SANDBOX_SECRETS_FILE, and the authority of SANDBOX_EGRESS_CA_CERT. Shows no value."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from sandbox_adapters.egress import OperatorSecrets, Secret, colliding
from sandbox_adapters.policy_input import normalise_policy
from sandbox_adapters.runners.grants import PRIVATE, host_path
from sandbox_adapters.settings import Settings, SettingsError, variable_name
from sandbox_adapters.settings_secrets import GENERATED_AUTHORITY
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import parse_principal
from sandbox_core.domain.policy import path_within

if TYPE_CHECKING:
    from sandbox_adapters.egress.authority import CertificateAuthority

_LARGEST_FILE_BYTES = 1024 * 1024
_LARGEST_VALUE_BYTES = 8 * 1024
_NAME_CHARACTERS = 64
_AUTHORIZATION = "Authorization"
_ALWAYS_VISIBLE = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/ssl/certs",
    "/etc/alternatives",
)
"""What every sandbox sees of the host, whatever the policy."""


class _Entry(BaseModel):
    """One secret, as the file has it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    value: SecretStr | None = None
    value_file: str | None = None
    value_env: str | None = None
    domains: list[str] = Field(min_length=1, max_length=256)
    header: str = Field(default=_AUTHORIZATION, max_length=256)
    format: str | None = Field(default=None, max_length=1024)
    principals: list[str] | None = Field(default=None, max_length=10_000)
    plain_http: bool = Field(default=False, strict=True)


def load_secrets(settings: Settings, environment: Mapping[str, str] | None = None) -> OperatorSecrets:
    """Return the secrets and the authority that the settings name; without any, an object that adds nothing.

    Args:
        settings: `secrets_file`, `egress_ca_cert`, `egress_ca_key`, and what sandboxes can see.
        environment: for `value_env`; os.environ by default.

    Raises SettingsError for a file that cannot be used, that others than its owner may read, or that a sandbox could
    see, for two secrets that one request could get for the same header, and for a secret that could never be sent.
    """
    if settings.secrets_file is None:
        if settings.egress_ca_cert is not None or settings.egress_ca_key is not None:
            raise SettingsError(
                f"{variable_name('egress_ca_cert')}: without {variable_name('secrets_file')} there is nothing to "
                "intercept for; unset it"
            )
        return OperatorSecrets()
    if settings.runner == "local":
        raise _problem(
            "secrets_file",
            "the local runner isolates nothing: commands could read the file. Use bubblewrap, or unset it",
        )
    secrets = _read_secrets(settings, os.environ if environment is None else environment)
    authority = _authority(settings, secrets)
    if authority is None:
        for secret in secrets:
            if not secret.plain_http:
                raise _problem(
                    "secrets_file",
                    f"the secret {secret.name!r} could never be sent: set {variable_name('egress_ca_cert')} so that it "
                    'can be added inside HTTPS, or say "plain_http": true',
                )
    return OperatorSecrets(secrets, authority)


def _read_secrets(settings: Settings, environment: Mapping[str, str]) -> list[Secret]:
    path = settings.secrets_file
    assert path is not None  # noqa: S101 - checked by the only caller
    data = _read_private(settings, "secrets_file", path, _LARGEST_FILE_BYTES)
    try:
        pairs = json.loads(data, object_pairs_hook=_object_without_duplicates)
    except _GivenTwice as error:
        raise _problem("secrets_file", f"{str(path)!r}: {error}") from None
    except (ValueError, RecursionError):
        raise _problem("secrets_file", f"{str(path)!r} is not JSON") from None
    if not isinstance(pairs, dict) or not pairs:
        raise _problem(
            "secrets_file",
            f"{str(path)!r} must be a JSON object like "
            '{"forge": {"value_env": "FORGE_TOKEN", "domains": ["api.example.com"]}}',
        )
    secrets = [_secret(settings, name, given, environment) for name, given in pairs.items()]
    both = colliding(secrets)
    if both is not None:
        first, second = both
        raise _problem(
            "secrets_file",
            f"the secrets {first.name!r} and {second.name!r} both set {second.header} for the same host and principal; "
            "a request must have one meaning",
        )
    return secrets


def _secret(settings: Settings, name: str, given: Any, environment: Mapping[str, str]) -> Secret:
    shown = f"the secret {name[:_NAME_CHARACTERS]!r}"
    try:
        entry = _Entry.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        first = details[0]
        where = ".".join(str(part)[:_NAME_CHARACTERS] for part in first["loc"]) or "it"
        raise _problem("secrets_file", f"{shown}: {where}: {first['msg']}") from None
    try:
        return Secret(
            name=name[:_NAME_CHARACTERS],
            domains=tuple(entry.domains),
            header=entry.header,
            value=_formatted(entry, _value(settings, shown, entry, environment)),
            plain_http=entry.plain_http,
            principals=None if entry.principals is None else frozenset(map(parse_principal, entry.principals)),
        )
    except InvalidArgument as error:
        raise _problem("secrets_file", f"{shown}: {error.field}: {error.problem}") from None


def _value(settings: Settings, shown: str, entry: _Entry, environment: Mapping[str, str]) -> str:
    if sum(item is not None for item in (entry.value, entry.value_file, entry.value_env)) != 1:
        raise _problem("secrets_file", f"{shown} must have exactly one of value, value_file and value_env")
    if entry.value is not None:
        value = entry.value.get_secret_value()
    elif entry.value_env is not None:
        value = environment.get(entry.value_env, "")
        if not value:
            raise _problem("secrets_file", f"{shown}: the environment has no {entry.value_env[:_NAME_CHARACTERS]!r}")
    else:
        assert settings.secrets_file is not None and entry.value_file is not None  # noqa: S101, PT018 - counted above
        path = settings.secrets_file.parent / entry.value_file
        data = _read_private(settings, "secrets_file", path, _LARGEST_VALUE_BYTES)
        value = data.decode("utf-8", errors="replace").removesuffix("\n").removesuffix("\r")
    if not value or len(value) > _LARGEST_VALUE_BYTES:
        raise _problem("secrets_file", f"{shown}: its value is empty or over {_LARGEST_VALUE_BYTES} bytes")
    return value


def _formatted(entry: _Entry, value: str) -> str:
    text = entry.format
    if text is None:
        text = "Bearer {}" if entry.header.lower() == _AUTHORIZATION.lower() else "{}"
    plain, encoded = text.count("{}"), text.count("{base64}")
    if plain + encoded != 1:
        raise InvalidArgument("format", "must have {} or {base64} once, where the value goes")
    if encoded:
        return text.replace("{base64}", base64.b64encode(value.encode()).decode("ascii"))
    return text.replace("{}", value)


def _authority(settings: Settings, secrets: Sequence[Secret]) -> CertificateAuthority | None:
    certificate, key = settings.egress_ca_cert, settings.egress_ca_key
    if certificate is None:
        if key is not None:
            raise _problem("egress_ca_key", f"it is of use only with {variable_name('egress_ca_cert')}")
        return None
    from sandbox_adapters.egress.authority import CertificateAuthority

    if certificate == GENERATED_AUTHORITY:
        if key is not None:
            raise _problem("egress_ca_key", f"{GENERATED_AUTHORITY!r} makes a key of its own; unset it")
        return CertificateAuthority.generate([entry for secret in secrets for entry in secret.entries])
    if key is None:
        raise _problem("egress_ca_cert", f"set {variable_name('egress_ca_key')} to the file of its private key, too")
    try:
        certificates = _read(Path(certificate), _LARGEST_FILE_BYTES)[0]
    except OSError as error:
        raise _problem("egress_ca_cert", f"{certificate!r} cannot be read: {error.strerror}") from None
    pem = _read_private(settings, "egress_ca_key", key, _LARGEST_FILE_BYTES)
    try:
        return CertificateAuthority.from_pem(certificates, pem)
    except ValueError as error:
        raise _problem("egress_ca_cert", str(error)) from None


def _read_private(settings: Settings, field: str, path: Path, largest_bytes: int) -> bytes:
    try:
        data, status = _read(path, largest_bytes)
        _refuse_visible(settings, field, path)
    except OSError as error:
        raise _problem(field, f"{str(path)!r} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise _problem(field, f"{str(path)!r} is not a file")
    if status.st_uid not in (0, os.geteuid()):
        raise _problem(field, f"{str(path)!r} belongs to another user; it must be the server's or root's")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise _problem(
            field, f"{str(path)!r} is open to others than its owner (mode {mode:03o}): chmod 600 it, and take the "
            "secrets in it for known to them"
        )  # fmt: skip
    if len(data) > largest_bytes:
        raise _problem(field, f"{str(path)!r} is over {largest_bytes} bytes")
    return data


def _read(path: Path, largest_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the beginning of a file, one byte more than may be, and what was opened. A pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        return (os.read(descriptor, largest_bytes + 1) if stat.S_ISREG(status.st_mode) else b""), status
    finally:
        os.close(descriptor)


def _refuse_visible(settings: Settings, field: str, path: Path) -> None:
    """Raise SettingsError for a file in a place that sandboxes see, or that a request may ask to see.

    What the ceiling denies inside its own grants cannot be asked for: the most specific entry decides.
    """
    ceiling = normalise_policy(settings.ceiling)["filesystem"]
    named = [host_path(entry) for name in ("allow_read", "allow_write") for entry in ceiling.get(name) or ()]
    granted = [entry for entry in named if entry not in PRIVATE]  # inside, those are the sandbox's own
    shown = [*_ALWAYS_VISIBLE, *map(str, settings.read_only_paths)]
    if _longest_around(path, granted) > _longest_around(path, map(host_path, ceiling.get("deny_read") or ())):
        shown += granted
    real = {str(path.absolute()), os.path.realpath(path)}
    for directory in shown:
        if any(
            path_within(one, two) for one in real for two in (os.path.normpath(directory), os.path.realpath(directory))
        ):
            raise _problem(
                field, f"{str(path)!r} lies in {directory!r}, which sandboxes can be shown; move it out of there"
            )


def _longest_around(path: Path, entries: Iterable[str]) -> int:
    real = os.path.realpath(path)
    around = [entry for entry in map(os.path.realpath, entries) if path_within(real, entry)]
    return max(map(len, around), default=0)


class _GivenTwice(ValueError):
    """A JSON object has a name twice."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _GivenTwice(f"the name {name[:_NAME_CHARACTERS]!r} is given twice")
        found[name] = value
    return found


def _problem(field: str, text: str) -> SettingsError:
    return SettingsError(f"{variable_name(field)}: {text}")
