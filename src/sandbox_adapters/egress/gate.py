"""Gate: the one place where a destination is decided on, resolved, checked and dialled."""

from __future__ import annotations

import anyio

from sandbox_adapters.egress.errors import Refused
from sandbox_adapters.egress.hosts import host_text
from sandbox_adapters.egress.ledger import Ledger
from sandbox_adapters.egress.requests import Destination
from sandbox_adapters.egress.resolver import Resolver
from sandbox_adapters.egress.rules import Decision, EgressRules
from sandbox_adapters.egress.streams import Activity, TcpStream


class Gate:
    """Every way in asks here, for every request, and tells `record` of every refusal."""

    def __init__(self, rules: EgressRules, resolver: Resolver, ledger: Ledger) -> None:
        self.rules = rules
        self.turn = anyio.Lock()
        """Held while a head is read: that takes a millisecond, and hundreds can come at the same moment."""
        self._resolver = resolver
        self._ledger = ledger

    def admit(self, destination: Destination, *, plain_http: bool = False) -> None:
        """Decide on a destination. Raises Refused, also for plain HTTP to a port that is for TLS only."""
        decision = self.rules.decide_host(destination.host, destination.port)
        if not decision.allowed:
            raise Refused(decision)
        if plain_http and self.rules.port_is_tls_only(destination.port):
            raise refusal(destination, "tls_ports", "this port takes TLS only, and this is plain HTTP")

    async def dial(self, destination: Destination, activity: Activity) -> TcpStream:
        """Return a connection to an admitted destination. Raises Refused for its addresses, and Unreachable."""
        host, port = destination.host, destination.port
        addresses = await self._resolver.resolve(host, port, denied=self.rules.denies_address)
        sock = await self._resolver.connect(addresses, port)
        self._ledger.dialled += 1
        return TcpStream(sock, activity, received=self._count_received, sent=self._count_sent)

    def record(self, refused: Refused) -> None:
        """Keep a refusal for the execution's report."""
        self._ledger.deny(refused.decision)

    def _count_received(self, size: int) -> None:
        self._ledger.bytes_from_network += size

    def _count_sent(self, size: int) -> None:
        self._ledger.bytes_to_network += size


def refusal(destination: Destination, rule: str, reason: str) -> Refused:
    """Return the refusal of `destination` by a check other than the rules for names, to be raised."""
    return Refused(Decision(False, rule, reason, host_text(destination.host), destination.port))
