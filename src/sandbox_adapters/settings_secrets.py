"""SecretSettings: where an operator's secrets are, and the authority by which they get into HTTPS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator

GENERATED_AUTHORITY = "auto"
"""In place of the authority's file: one is made at every start, and its key is in memory alone."""


class SecretSettings(BaseModel):
    """Fields that Settings has of it; secrets_file.load_secrets reads what they name."""

    secrets_file: Path | None = Field(
        default=None,
        description="JSON file of secrets that the egress proxy adds to requests of allowed domains: docs/secrets.md.",
    )
    egress_ca_cert: str | None = Field(
        default=None,
        description="Where HTTPS is intercepted for secrets: the authority's certificates, PEM, or `auto` for one made "
        "at every start.",
    )
    egress_ca_key: Path | None = Field(
        default=None,
        description="The authority's private key, PEM, without a password.",
    )

    @field_validator("secrets_file", "egress_ca_cert", "egress_ca_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value
