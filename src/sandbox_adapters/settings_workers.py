"""WorkerSettings: the part of Settings that puts fronts and backs into different processes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.labels import MAX_OFFERED, parse_labels

QueueEngine = Literal["redis", "nats", "rabbitmq"]

_ENGINES: Final[dict[str, QueueEngine]] = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "nats": "nats",
    "tls": "nats",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
}
"""Which engine the scheme of SANDBOX_QUEUE_URL names."""


class WorkerSettings(BaseSettings):
    """Read by `sandbox worker` and by servers with a queue that workers share. A base of Settings; not for use alone.

    Arguments of fields that need other fields are checked by `redis_options.check_redis`.
    """

    queue_url: SecretStr | None = Field(
        default=None,
        description="Queue that servers and workers share: `redis://`, `rediss://` or `unix://`, mostly the same as "
        "REDIS_URL; `nats://` or `tls://` for NATS JetStream; `amqp://` or `amqps://` for RabbitMQ. REDIS_URL must be "
        "set too. Unset: each server runs what it accepts.",
    )
    local_runner: bool = Field(
        default=True,
        description="`false`: this server runs nothing itself, needs no isolation rights, and leaves everything to "
        "the workers of SANDBOX_QUEUE_URL.",
    )
    labels: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="What this worker, or this server with a runner of its own, offers to executions that ask for "
        "labels: up to 16 names such as `gpu`, separated by commas, or a JSON list.",
    )
    worker_host: str = Field(
        default="127.0.0.1",
        description="Address of a worker's /health, which tells counts and takes no token.",
    )
    worker_port: int = Field(
        default=8090,
        ge=0,
        le=65535,
        description="Port of a worker's /health; 0 takes a free one.",
    )

    @field_validator("queue_url", mode="before")
    @classmethod
    def _no_text_is_no_queue(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("queue_url")
    @classmethod
    def _known_engine(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and _scheme(value.get_secret_value()) not in _ENGINES:
            raise ValueError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in _ENGINES)}")
        return value

    @field_validator("labels")
    @classmethod
    def _usable_labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(sorted(parse_labels(value, most=MAX_OFFERED)))
        except InvalidArgument as error:
            raise ValueError(error.problem) from None

    @property
    def offers(self) -> frozenset[str]:
        """What the back of this process offers; nothing where there is none."""
        return frozenset(self.labels) if self.local_runner else frozenset()

    @property
    def queue_engine(self) -> QueueEngine | None:
        """What keeps the queue that processes share; None when there is none."""
        return None if self.queue_url is None else _ENGINES[_scheme(self.queue_url.get_secret_value())]

    @property
    def place(self) -> Literal["here", "elsewhere"]:
        """Where executions run."""
        return "here" if self.local_runner else "elsewhere"


def _scheme(url: str) -> str:
    try:
        return urlsplit(url.partition(",")[0]).scheme
    except ValueError:
        return ""
