"""HttpSettings: the part of Settings that says what the HTTP front accepts and how it answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

NameList = Annotated[tuple[str, ...], NoDecode]


class HttpSettings(BaseSettings):
    """Read by the MCP server alone. A base of Settings; not for use alone."""

    allowed_hosts: NameList = Field(
        default=(),
        description="Host headers that are accepted beside the bound address; separated by commas, or a JSON list.",
    )
    allowed_origins: NameList = Field(
        default=(),
        description="Origin headers that are accepted; separated by commas, or a JSON list.",
    )
    max_request_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        le=1 << 30,
        description="Largest HTTP request body, bytes.",
    )
    header_timeout_seconds: float = Field(
        default=10,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time to receive the headers of a request, seconds.",
    )
    body_timeout_seconds: float = Field(
        default=30,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time to receive the body of a request, seconds.",
    )
    guide_replies: bool = Field(
        default=False,
        description="Replies in the shape of the guide's server, events included (srt-mcp-server sets it).",
    )
    older_sessions: Literal["auto", "stateless", "sticky"] = Field(
        default="auto",
        description="Older MCP clients: `stateless`, any replica serves them; `sticky`, each has a session in one "
        "replica. `auto`: stateless with shared state, else sticky.",
    )
