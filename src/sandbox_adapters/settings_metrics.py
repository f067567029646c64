"""MetricsSettings: the part of Settings that says who may read `/metrics`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class MetricsSettings(BaseSettings):
    """Read by servers over HTTP and by workers. A base of Settings; not for use alone.

    What needs other settings is checked by whoever serves them.
    """

    metrics: Literal["off", "token", "open"] = Field(
        default="off",
        description="`/metrics` for Prometheus, on the port of a server and of a worker's /health. `token`: for who "
        "sends SANDBOX_METRICS_TOKEN; `open`: for all who reach the port. Counts only: no ids, names or commands.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of who scrapes, with SANDBOX_METRICS=token. It opens nothing else, and no caller's "
        "token opens /metrics.",
    )

    @field_validator("metrics_token", mode="before")
    @classmethod
    def _no_text_is_no_token(cls, value: Any) -> Any:
        return None if value == "" else value
