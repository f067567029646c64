"""Isolation: what was really enforced around one execution, as the runner reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Isolation:
    """The layers that were applied. A caller can check it; it never says more than was done."""

    runner: str
    version: str
    isolated: bool
    """False when the code ran with the server's own rights."""
    network: str = "host"
    """`none`: only a loopback of its own. `host`: whatever the server reaches."""
    kernel_uid: int | None = None
    """The uid that the kernel sees, from the server's user namespace."""
    layers: tuple[str, ...] = ()
    """Names of namespaces and other layers, for example `pid`, `mount`, `no_new_privs`."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Limit name -> the mechanism that holds it, for example `max_processes` -> `rlimit`."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a layer is exactly, for example `seccomp_sha256` -> the hash of the system call filter."""
