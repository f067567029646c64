"""What the proxy is told and what it reports: limits, usage, denials."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from sandbox_core.domain.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Bounds of one proxy, which serves one execution.

    Args:
        max_connections: connections served at once; further ones wait in the listener's queue.
        resolve_timeout_seconds: for one name.
        connect_timeout_seconds: for one destination, over all its addresses.
        handshake_timeout_seconds: from the first byte of a request head, SOCKS handshake or TLS hello to its last.
        idle_timeout_seconds: a connection over which nothing moves in either direction is ended.
        crowded_idle_seconds: the same, for the one that is idle longest, while all places are taken and others wait.
        total_timeout_seconds: for one connection, whatever moves.
        max_addresses: addresses of one name that are tried.
        max_head_bytes: request or response head; the same bound again for a ClientHello.
        max_denials: different denials that are kept.
    """

    max_connections: int = 256
    resolve_timeout_seconds: float = 5
    connect_timeout_seconds: float = 10
    handshake_timeout_seconds: float = 15
    idle_timeout_seconds: float = 300
    crowded_idle_seconds: float = 30
    total_timeout_seconds: float = 3600
    max_addresses: int = 8
    max_head_bytes: int = 32 * 1024
    max_denials: int = 100

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise InvalidArgument(f"egress.{item.name}", "must be over 0")


@dataclass(frozen=True, slots=True)
class Denial:
    """Something that the rules refused.

    Args:
        host: canonical, or a printable form of what was asked when it could not be understood.
        port: as asked.
        rule: the rule or check that refused it, for example `allowed_domains` or `denied_domains: *.example.com`.
        reason: why, for people.
        at: when it was refused first, aware, UTC.
        count: how often.
    """

    host: str
    port: int
    rule: str
    reason: str
    at: datetime
    count: int = 1


@dataclass(frozen=True, slots=True)
class EgressUsage:
    """What went through so far.

    Args:
        bytes_to_network: sent to destinations, without TCP and IP.
        bytes_from_network: received from destinations.
        connections: accepted from the sandbox.
        dialled: connections made to destinations.
        denied: refusals, also those beyond `max_denials`.
        faults: connections that ended in an error of the proxy's own; 0 unless it has a defect.
    """

    bytes_to_network: int = 0
    bytes_from_network: int = 0
    connections: int = 0
    dialled: int = 0
    denied: int = 0
    faults: int = 0
