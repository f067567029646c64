"""Walls: what stands around every sandbox of a runner beside bwrap's namespaces, and the record of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from sandbox_adapters.runners.hardening import landlock, seccomp

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Walls:
    """Made once by a runner and used by its launchers, until `close`.

    Raises OSError, and ValueError on a machine that there is no system call table for.
    """

    def __init__(self) -> None:
        program = seccomp.build_filter()
        self.filter_descriptor = os.memfd_create("seccomp-filter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(self.filter_descriptor, program)
        # One for all executions, so nobody may ever change it.
        fcntl.fcntl(self.filter_descriptor, fcntl.F_ADD_SEALS, _SEALS)
        scopes = landlock.detect()
        facts = {"seccomp_sha256": seccomp.filter_hash(program)}
        layers = ["seccomp"]
        if scopes.scopes:
            layers.append("landlock_scopes")
            facts["landlock_abi"] = str(scopes.abi)
            facts["landlock_scopes"] = ", ".join(scopes.scopes)
        self.layers = tuple(layers)
        """Names for `Isolation.layers`."""
        self.facts: Mapping[str, str] = MappingProxyType(facts)
        """For `Isolation.facts`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything; no launcher may be running any more."""
        os.close(self.filter_descriptor)
