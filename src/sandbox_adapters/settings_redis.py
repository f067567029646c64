"""RedisSettings: the part of Settings that says how to reach Redis and where in it our keys are."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

_PREFIX = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_SENTINEL = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class RedisSettings(BaseSettings):
    """Read only when the state is in Redis. A base of Settings; not for use alone."""

    redis_prefix: str = Field(
        default="",
        description="What the names of all keys begin with, a colon after it; queues in RabbitMQ, and streams and "
        "subjects in NATS, have it in theirs. Empty: the names as documented.",
    )
    redis_hash_tag: bool = Field(
        default=False,
        description="Put the prefix (or `sandbox`) in braces, so that all keys are in one slot of a Redis Cluster.",
    )
    redis_timeout_seconds: float = Field(
        default=2,
        gt=0,
        le=60,
        allow_inf_nan=False,
        description="How long connecting to Redis, one answer, and a free connection may take, seconds; with NATS "
        "and RabbitMQ too.",
    )
    redis_max_connections: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Connections to Redis at most, beside the two that listen.",
    )
    redis_sentinels: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Sentinels as host:port, separated by commas; the server is asked of them, and user, password, "
        "database and TLS are those of REDIS_URL.",
    )
    redis_sentinel_service: str = Field(
        default="mymaster",
        min_length=1,
        max_length=128,
        description="What the Sentinels call the server.",
    )
    redis_sentinel_password: SecretStr | None = Field(
        default=None,
        description="Password of the Sentinels themselves.",
    )

    @field_validator("redis_prefix")
    @classmethod
    def _usable_prefix(cls, value: str) -> str:
        if not _PREFIX.fullmatch(value):
            raise ValueError("must be at most 64 characters of A-Z a-z 0-9 . _ : -")
        return value

    @field_validator("redis_sentinels")
    @classmethod
    def _host_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _SENTINEL.fullmatch(text):
                raise ValueError(f"{text!r} is not host:port")
        return value
