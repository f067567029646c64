"""Egress: gives each sandbox that a policy grants names to its own proxy, and refuses what that cannot enforce."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence

from sandbox_adapters.egress import (
    DEFAULT_PORTS,
    AddressPolicy,
    EgressLimits,
    EgressProxy,
    EgressRules,
    Lookup,
    LookupThreads,
    OperatorSecrets,
    StaticLookup,
    SystemLookup,
    is_own_address,
)
from sandbox_adapters.egress.hosts import IpAddress
from sandbox_adapters.egress.trust import BUNDLE_INSIDE
from sandbox_adapters.runners.network_execution import ExecutionNetwork, proxy_facts
from sandbox_adapters.runners.network_selftest import Starter, problem_with_listener
from sandbox_core.domain.errors import InvalidArgument, LaunchFailed, PolicyViolation
from sandbox_core.domain.ids import Principal
from sandbox_core.domain.policy import NetworkPolicy

DESCRIPTORS_PER_CONNECTION = 3
"""The sandbox's end, the destination's end, and one to look its name up with."""

_MOST_CONNECTIONS, _FEWEST_CONNECTIONS = 128, 4
_COUNTED_WITHOUT_LIMIT = 1 << 16
_LOOKUP_THREADS = 16
"""For each execution, all taken together; those of a name server that does not answer stay for a while."""


class ConnectionBudget:
    """Shares half of the server's open files among the proxies, so that no sandbox can take the server's own.

    Args:
        executions: how many may run at once; each gets an equal part, from 4 to 128 connections.
        open_files: what the server may have open; its RLIMIT_NOFILE by default.
    """

    def __init__(self, executions: int, *, open_files: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if open_files is None else open_files
        if limit == resource.RLIM_INFINITY:
            limit = _COUNTED_WITHOUT_LIMIT
        self._free = limit // 2 // DESCRIPTORS_PER_CONNECTION
        self.each = min(_MOST_CONNECTIONS, max(_FEWEST_CONNECTIONS, self._free // executions))
        """Connections of one execution."""

    def take(self) -> None:
        """Reserve one execution's part. Raises LaunchFailed when none is left."""
        if self._free < self.each:
            raise LaunchFailed(
                "Too many executions with a network at once for the server's limit of open files (ulimit -n). "
                "Try again later."
            )
        self._free -= self.each

    def give_back(self) -> None:
        """Free what `take` reserved."""
        self._free += self.each


class Egress:
    """What a runner knows of the network beyond its sandboxes; one for each runner.

    Args:
        ports: ports that may be asked for; 80 and 443 by default. On 443 nothing but TLS is spoken.
        addresses: what may be dialled; by default the public internet without this machine's own addresses.
        hosts: addresses of names that no resolver needs to be asked for, by canonical name.
        lookup: makes what looks up all other names, for each proxy anew; the system's resolver by default.
        executions: how many run at once, for the share of open files that each gets.
        secrets: the operator's; what each execution's proxy adds depends on who asked for it.
    """

    def __init__(
        self,
        *,
        ports: frozenset[int] = DEFAULT_PORTS,
        addresses: AddressPolicy | None = None,
        hosts: Mapping[str, Sequence[IpAddress]] | None = None,
        lookup: Callable[[], Lookup] | None = None,
        executions: int = 10,
        secrets: OperatorSecrets | None = None,
    ) -> None:
        self._ports = ports
        self._addresses = addresses if addresses is not None else AddressPolicy(is_own=is_own_address)
        self._hosts = dict(hosts or {})
        threads = LookupThreads(_LOOKUP_THREADS * executions)
        self._lookup = lookup if lookup is not None else lambda: SystemLookup(threads)
        self._executions = executions
        self._budget = ConnectionBudget(executions)
        self._secrets = OperatorSecrets() if secrets is None else secrets
        self.unavailable = ""
        """Why no sandbox can be given a proxy here; "" while nothing is known against it."""

    def violations(self, network: NetworkPolicy) -> list[PolicyViolation]:
        """Return what of a policy cannot be enforced: all of it where there is no proxy, entries that name nothing."""
        if not network.allowed_domains:
            return []
        if self.unavailable:
            names = ", ".join(network.allowed_domains)
            return [PolicyViolation("network.allowed_domains", names, "no domain", self.unavailable)]
        found = []
        for field in ("allowed_domains", "denied_domains"):
            for entry in getattr(network, field):
                try:
                    EgressRules((entry,))
                except InvalidArgument as error:
                    found.append(PolicyViolation(f"network.{field}", entry, "names and addresses", error.problem))
        return found

    def facts(self) -> dict[str, str]:
        """Return what the record of every execution with a grant says of its proxy."""
        return proxy_facts(self._ports)

    @property
    def intercepts(self) -> bool:
        """See OperatorSecrets."""
        return self._secrets.intercepts

    def etc_files(self) -> dict[str, bytes]:
        """Return what every sandbox's /etc must have, by the path in it. Raises OSError."""
        bundle = self._secrets.trust_bundle()
        return {} if bundle is None else {BUNDLE_INSIDE.removeprefix("/etc/"): bundle}

    def open(self, network: NetworkPolicy, principal: Principal | None = None) -> ExecutionNetwork | None:
        """Return the way out of one sandbox for what `principal` asked, None for a policy without any.

        Raises LaunchFailed and InvalidArgument.
        """
        if not network.allowed_domains:
            return None
        rules = EgressRules.from_policy(network, ports=self._ports)
        injection = self._secrets.for_principal(principal)
        self._budget.take()
        try:
            proxy = EgressProxy(
                rules,
                addresses=self._addresses,
                limits=EgressLimits(max_connections=self._budget.each),
                lookup=StaticLookup(self._hosts, self._lookup()),
                inject_headers=injection.inject_headers,
                interception=injection.interception,
            )
            return ExecutionNetwork(
                proxy,
                rules,
                release=self._budget.give_back,
                environment=self._secrets.environment(),
                intercepts=injection.interception is not None,
            )
        except OSError as error:
            self._budget.give_back()
            raise LaunchFailed(f"The sandbox got no network proxy: {error.strerror}. Try again later.") from error

    async def self_test(self, start: Starter) -> None:
        """Find out whether a sandbox started by `start` can be given a proxy. To be called before any execution."""
        # A runner that was entered may have raised the limit of open files.
        self._budget = ConnectionBudget(self._executions)
        self.unavailable = await problem_with_listener(start)
