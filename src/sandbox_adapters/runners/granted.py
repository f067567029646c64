"""Granted: the host directories of one execution, from before its start until it was looked through at its end."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import anyio
from anyio import to_thread

from sandbox_adapters.runners.child import grant_check
from sandbox_adapters.runners.child.grant_check import Offence
from sandbox_adapters.runners.child.mount_calls import can_open_paths
from sandbox_adapters.runners.grant_neighbours import Neighbours
from sandbox_adapters.runners.grant_plan import Plan, make_plan
from sandbox_adapters.runners.grants import (
    ALLOW_READ,
    ALLOW_WRITE,
    NO_OPENAT2,
    PRIVATE,
    Access,
    Grants,
    grant_violations,
    on_host,
    resolve_grants,
)
from sandbox_core.domain.denial import Denial, DenialKind, bounded
from sandbox_core.domain.errors import LaunchFailed, PolicyRefused, PolicyViolation
from sandbox_core.domain.isolation import Isolation
from sandbox_core.domain.policy import FilesystemPolicy
from sandbox_core.ports.runner import ProcessExit

_log = logging.getLogger("sandbox_adapters.runners")

GRANT_LAYERS = ("no_links_in_grants", "no_set_id_bits")
"""Names for `Isolation.layers`, of an execution with grants."""

_OWN = ("/etc", "/proc", "/dev")
_MAX_PLAN_BYTES = 256 * 1024
_STAGE = "stage"
_KEPT = ("/var/tmp",)  # noqa: S108 - is looked for, not used
_AT_ONCE = 2
"""Directories that are looked through at the same time, so that the server's own work goes on beside it."""


class Granter:
    """What a runner knows of grants.

    Args:
        readable: the roots of what every command can read; nothing in their way can be granted.
        operator: the `filesystem` of the operator's ceiling: a path that its `allow_write` names itself may have a
            protected name, and what it denies inside of what it grants, no request gets around.
        layers: those of GRANT_LAYERS that are applied.
    """

    def __init__(
        self, readable: Sequence[str], operator: FilesystemPolicy, *, layers: Sequence[str] = GRANT_LAYERS
    ) -> None:
        self._layers = tuple(layers)
        self._limiter: anyio.CapacityLimiter | None = None
        self._neighbours = Neighbours()
        self._taken = tuple(readable)
        self._visible = tuple(path for path in readable if path not in (*_OWN, *PRIVATE))
        self._operator = operator

    def violations(self, policy: FilesystemPolicy) -> list[PolicyViolation]:
        """Return the grants that no sandbox can have, without looking at the host's files."""
        if not self.asked(policy):
            return []
        if not can_open_paths():
            asked = [(ALLOW_READ, path) for path in policy.allow_read] + [
                (ALLOW_WRITE, path) for path in policy.allow_write
            ]
            return [PolicyViolation(field, path, "no path of the host", NO_OPENAT2) for field, path in asked]
        return grant_violations(policy, taken=self._taken, visible=self._visible, operator=self._operator)

    def asked(self, policy: FilesystemPolicy) -> bool:
        """True when a policy grants anything of the host."""
        return bool(policy.allow_read or policy.allow_write) and on_host(policy, self._visible)

    def layers_of(self, policy: FilesystemPolicy) -> tuple[str, ...]:
        """Return the layers that an execution has because of its grants."""
        return self._layers if self.asked(policy) else ()

    async def prepare(self, policy: FilesystemPolicy, directory: str) -> Granted | None:
        """Look at what a policy grants, and plan the mounts; None when it asks for nothing of the host.

        Args:
            policy: one without `violations`.
            directory: the runner's runtime directory, which cannot be granted.

        Raises PolicyRefused for what is not there or cannot be granted safely, LaunchFailed.
        """
        if not self.asked(policy):
            return None
        kept = (os.path.dirname(directory), *_KEPT)
        own = grant_violations(policy, taken=(directory,), visible=self._visible, operator=self._operator, kept=kept)
        if own:
            raise PolicyRefused(own)
        grants = resolve_grants(policy, visible=self._visible, operator=self._operator.allow_write)
        # Not abandoned when it is cancelled: nobody else would close what it opens.
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        presence = self._neighbours.arrive()
        leave = partial(self._neighbours.leave, presence)
        try:
            plan = await to_thread.run_sync(make_plan, grants, limiter=self._limiter)
        except BaseException:
            leave()
            raise
        named = {region.path for region in grants.regions}
        plan.checked[:] = self._neighbours.settle(presence, plan.checked, named)
        try:
            return Granted(grants, plan, directory, self._layers, self._limiter, leave)
        except OSError as error:
            leave()
            plan.close()
            raise LaunchFailed(f"The grants could not be written down: {error.strerror}. Try again later.") from error


class Granted:
    """The grants of one execution. `judged` once it has ended, and `finish` in any case.

    `leave` is called when what it left behind is put aside, or nothing of it ran.
    """

    def __init__(
        self,
        grants: Grants,
        plan: Plan,
        directory: str,
        layers: Sequence[str],
        limiter: anyio.CapacityLimiter,
        leave: Callable[[], None],
    ) -> None:
        stage = os.path.join(directory, _STAGE)
        os.makedirs(stage, exist_ok=True)
        os.chmod(stage, 0o711)  # noqa: S103 - the sandbox's user finds its mounts in it
        self._plan = plan
        self._limiter = limiter
        self._leave = leave
        self._layers = tuple(layers)
        self._directory, self._name = directory, secrets.token_hex(8)
        self._lock = anyio.Lock()
        self._judged: ProcessExit | None = None
        self.packed = plan.pack(stage)
        """For the launcher."""
        self.options = tuple(option.replace("{stage}", stage, 1) for option in plan.options)
        """For bwrap."""
        self._shown = ", ".join(
            f"{region.path} ({region.access.name.lower()})" for region in grants.regions if region.access > Access.NONE
        )
        if len(self.packed) > _MAX_PLAN_BYTES:
            raise OSError(7, "they need too many or too long paths")
        if plan.checked:
            grant_check.write_journal(directory, self._name, plan.checked)

    def recorded(self, isolation: Isolation) -> Isolation:
        """Return the record of an execution with these grants."""
        facts = {**isolation.facts, "filesystem_grants": self._shown}
        return replace(isolation, layers=(*isolation.layers, *self._layers), facts=facts)

    async def judged(self, exit_: ProcessExit) -> ProcessExit:
        """Return an exit with what the execution must not have left; no process of it exists any more."""
        async with self._lock:
            if self._judged is None:
                with anyio.CancelScope(shield=True):
                    offences, omitted = await to_thread.run_sync(self._plan.check, limiter=self._limiter)
                    grant_check.forget(self._directory, self._name)
                self._leave()
                for offence in offences:
                    if offence.problem:
                        _log.error("%r was left by an execution and stays: %s", offence.path, offence.problem)
                denials, left_out = bounded((*exit_.denials, *map(_denial, offences)))
                omitted += left_out + exit_.denials_omitted
                self._judged = replace(exit_, denials=denials, denials_omitted=omitted)
            return self._judged

    async def finish(self, exit_: ProcessExit | None) -> None:
        """Look through what was writable, unless that is done, and let go of everything.

        Without an exit processes may still run: then the launcher looks at its end, or the next start.
        """
        try:
            if exit_ is not None:
                await self.judged(exit_)
        finally:
            self._plan.close()

    def abandon(self) -> None:
        """Let go of everything: nothing was started."""
        grant_check.forget(self._directory, self._name)
        self._leave()
        self._plan.close()


def _denial(offence: Offence) -> Denial:
    if offence.problem:
        text = f"Look at it before you use it: {offence.problem}."
    elif offence.rule == grant_check.RULE_DENIED:
        text = f"It was denied and has been renamed to {offence.moved_to!r}."
    else:
        text = f"A program on the host could run or obey it, so it has been renamed to {offence.moved_to!r}."
    return Denial(DenialKind.FILESYSTEM, offence.path, offence.rule, text)
