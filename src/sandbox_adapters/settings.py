"""Settings: every variable of the environment, its meaning, unit and default."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic_core
import pydantic_settings
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sandbox_adapters.policy_input import did_you_mean, normalise_policy, parse_policy
from sandbox_adapters.settings_egress import EgressSettings
from sandbox_adapters.settings_http import HttpSettings
from sandbox_adapters.settings_metrics import MetricsSettings
from sandbox_adapters.settings_redis import RedisSettings
from sandbox_adapters.settings_secrets import SecretSettings
from sandbox_adapters.settings_workers import WorkerSettings
from sandbox_core.domain.errors import CallerError, InvalidArgument

PREFIX = "SANDBOX_"
MOST_QUEUED = 1_000_000
_UNPREFIXED = {"redis_url": "REDIS_URL"}
_TOKEN = re.compile(r"[!-~]{1,4096}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")

PathList = Annotated[tuple[Path, ...], NoDecode]
PolicyJson = Annotated[dict[str, Any], NoDecode]


class SettingsError(CallerError):
    """The settings cannot be used. `problems` has one sentence for each variable, beginning with its name."""

    code: ClassVar[str] = "settings_invalid"

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _ReadableErrors(BaseSettings):
    """Turns pydantic's report, which would show values, into a SettingsError that names variables."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
            raise SettingsError(*(_problem(item["loc"], item["type"], item["msg"]) for item in details)) from None
        except pydantic_settings.SettingsError as error:
            raise SettingsError(f"The environment cannot be read: {error}") from None


class Settings(
    _ReadableErrors, SecretSettings, RedisSettings, WorkerSettings, EgressSettings, HttpSettings, MetricsSettings
):
    """What an operator can set. Arguments win over the environment (`SANDBOX_` and the name; `REDIS_URL` as it is).

    Raises SettingsError with one sentence for each field that cannot be used.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    host: str = Field(
        default="127.0.0.1",
        description="Address that the HTTP server binds.",
    )
    port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="Port of the HTTP server; 0 takes a free one.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias="REDIS_URL",
        description="Redis for shared state: `redis://`, `rediss://` (TLS) or `unix://`, with user and password.",
    )
    auth_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that every HTTP client must send.",
    )
    auth_tokens_file: Path | None = Field(
        default=None,
        description="JSON file, principal name to bearer token, for several callers.",
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Serve an address other than loopback without a token. Anyone who reaches it runs code.",
    )
    max_concurrent: int = Field(
        default=10,
        ge=1,
        le=100_000,
        description="Executions running at once, over all callers.",
    )
    max_per_session: int = Field(
        default=5,
        ge=1,
        le=100_000,
        description="Executions running at once in one session: those of one `session_id`, or of an older client's "
        "session, or else all that its caller starts without a name.",
    )
    max_per_principal: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Executions running at once for one principal. Unset: all for a single principal, else a share "
        "such that the others together cannot take the last place.",
    )
    max_queued: int = Field(
        default=100,
        ge=1,
        le=MOST_QUEUED,
        description="Executions waiting for a place, over all callers.",
    )
    timeout: float = Field(
        default=300,
        gt=0,
        le=31_536_000,
        allow_inf_nan=False,
        description="Largest timeout_seconds of an execution, seconds.",
    )
    log_file: str = Field(
        default="sandbox_server.log",
        description="Log file of `sandbox serve`: 10 MB, 7 days, compressed. Empty, or not named over stdio: none.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="Least level that is logged.",
    )
    state: Literal["memory", "redis"] = Field(
        default="memory",
        description="Where executions and their output are kept. `redis` by itself when REDIS_URL is set.",
    )
    runner: Literal["bubblewrap", "local"] = Field(
        default="bubblewrap",
        description="How commands run. `local` isolates nothing and is never chosen by itself.",
    )
    ttl_seconds: int = Field(
        default=3600,
        ge=1,
        le=31_536_000,
        description="When a finished execution is forgotten, seconds after its last access.",
    )
    ceiling: PolicyJson = Field(
        default_factory=dict,
        description="JSON in the shape of sandbox_config, over the built-in ceiling: what a request may ask at most. "
        "null takes a bound away.",
    )
    defaults: PolicyJson = Field(
        default_factory=dict,
        description="JSON in the shape of sandbox_config, over the built-in limits of requests that name none. "
        "null takes a bound away.",
    )
    drain_grace_seconds: float = Field(
        default=10,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="How long running ones may go on at shutdown, seconds.",
    )
    kill_grace_seconds: float = Field(
        default=5,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Time from the request to end (SIGTERM) to SIGKILL, seconds.",
    )
    spares: int = Field(
        default=2,
        ge=0,
        le=32,
        description="How many sandboxes wait, built ahead for the limits asked for last; 0: none. About 0.2 MiB each.",
    )
    bwrap_path: Path | None = Field(
        default=None,
        description="The bwrap program. Unset: the packaged one or the system's, whichever passes the self-test.",
    )
    read_only_paths: PathList = Field(
        default=(),
        description="Extra host paths visible inside, read-only; absolute, separated by commas, or a JSON list.",
    )
    lease_seconds: float = Field(
        default=9,
        ge=1,
        le=3600,
        allow_inf_nan=False,
        description="How long a replica may be silent, seconds; what it ran is marked lost a third of it later.",
    )
    max_retained: int = Field(
        default=50_000,
        ge=1,
        le=100_000_000,
        description="Executions kept in memory; the oldest finished of the caller that has most go first.",
    )
    max_retained_mb: int = Field(
        default=4096,
        ge=1,
        le=1 << 30,
        description="Output kept in memory, MiB; the oldest finished of the caller that has most go first.",
    )

    @model_validator(mode="before")
    @classmethod
    def _redis_by_its_url(cls, values: Any) -> Any:
        if isinstance(values, dict) and "state" not in values:
            named = [values[name] for name in ("redis_url", "REDIS_URL") if name in values]
            if named and named[0]:
                return values | {"state": "redis"}
        return values

    @field_validator(
        "redis_sentinels",
        "read_only_paths",
        "allowed_hosts",
        "allowed_origins",
        "labels",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _json(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("read_only_paths")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            if not path.is_absolute():
                raise ValueError(f"{str(path)!r} is not an absolute path")
        return value

    @field_validator(
        "redis_url", "redis_sentinel_password", "auth_tokens_file", "bwrap_path", "max_per_principal", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("auth_token")
    @classmethod
    def _usable_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_usable_token(value.get_secret_value()):
            raise ValueError("must be 1 to 4096 printable ASCII characters without spaces; unset it for no token")
        return value

    @field_validator("host")
    @classmethod
    def _usable_host(cls, value: str) -> str:
        if not is_address(value) and not _HOST_NAME.fullmatch(value):
            raise ValueError("must be an IP address or a host name")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("ceiling", "defaults", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        given = (_json(value) if value.strip() else {}) if isinstance(value, str) else value
        try:
            parse_policy(given)
        except InvalidArgument as error:
            raise ValueError(str(error)) from None
        return given

    @field_validator("defaults")
    @classmethod
    def _only_limits(cls, value: dict[str, Any]) -> dict[str, Any]:
        for section in ("network", "filesystem"):
            if normalise_policy(value)[section]:
                raise ValueError(f"holds limits only; {section} of every execution belongs into SANDBOX_CEILING")
        return value

    @property
    def has_tokens(self) -> bool:
        """True when HTTP clients must send a token."""
        return self.auth_token is not None or self.auth_tokens_file is not None

    @property
    def shares_state(self) -> bool:
        """True when other replicas answer for the same executions."""
        return str(self.state) != "memory"

    @property
    def older_sessions_are_stateless(self) -> bool:
        """True when each request of an older client stands alone."""
        return self.older_sessions == "stateless" or (self.older_sessions == "auto" and self.shares_state)


def is_usable_token(token: str) -> bool:
    """True for 1 to 4096 printable ASCII characters without spaces: what a header carries unchanged."""
    return _TOKEN.fullmatch(token) is not None


def variable_name(field: str) -> str:
    """Return the environment variable of a field of Settings."""
    return _UNPREFIXED.get(field, PREFIX + field.upper())


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return one sentence for each `SANDBOX_` variable (of os.environ by default) that no setting reads."""
    names = os.environ if environment is None else environment
    known = {field.upper() for field in Settings.model_fields if field not in _UNPREFIXED}
    sentences = []
    for name in sorted(names):
        rest = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and rest not in known:
            hint = did_you_mean(rest, known).replace("mean ", f"mean {PREFIX}")
            sentences.append(f"{name} is not a setting{hint}; it is ignored.")
    return sentences


def check_exposure(settings: Settings) -> None:
    """Refuse to serve an address that others reach without a token.

    Raises SettingsError unless the host is loopback, a token is set, or `allow_unauthenticated` says otherwise.
    """
    if settings.has_tokens or settings.allow_unauthenticated or is_loopback(settings.host):
        return
    raise SettingsError(
        f"{variable_name('host')} is {settings.host}, which others can reach, and no token is set: anyone could run "
        f"code here. Set {variable_name('auth_token')} or {variable_name('auth_tokens_file')}, or say "
        "--allow-unauthenticated."
    )


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback addresses of IPv4 and IPv6."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """True for the text of an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _json(text: str) -> Any:
    try:
        return pydantic_core.from_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    field = str(location[0]) if location else ""
    if kind == "extra_forbidden":
        return f"{field} is not a setting{did_you_mean(field, Settings.model_fields)}"
    known = {name.upper(): name for name in Settings.model_fields}
    name = field if field in _UNPREFIXED.values() else variable_name(known.get(field.upper(), field))
    said = message.removeprefix("Value error, ")
    return f"{name}: {said[:1].lower()}{said[1:]}"
