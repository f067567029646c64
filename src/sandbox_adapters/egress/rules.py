"""EgressRules: which host and port may be asked for. Pure; one decision for every way in."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox_adapters.egress.hosts import Host, HostRefused, IpAddress, host_text, parse_host, printable_host
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.policy import NetworkPolicy, domain_covers

DEFAULT_PORTS = frozenset({80, 443})
DEFAULT_TLS_PORTS = frozenset({443})


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a host and port may be reached, the rule that decided, and why.

    `rule` starts with the name of the setting (`allowed_domains`, `denied_domains`, `ports`) or of the check
    (`host_syntax`), followed by the entry that decided where there is one. `host` is canonical, or, when it could
    not be understood, a printable form of what was asked.
    """

    allowed: bool
    rule: str
    reason: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class EgressRules:
    """Names, addresses and ports that may be reached.

    Args:
        allowed_domains: `example.com`, `*.example.com` (every name below it, not itself), or an address exactly.
        denied_domains: the same forms; they win over `allowed_domains`. A denied address is also refused when an
            allowed name resolves to it.
        ports: ports that may be asked for; 80 and 443 when not given.
        tls_ports: of these ports, those where nothing but TLS may be spoken; 443 when not given.
        raw_ports: ports, allowed in addition, through which any protocol passes unseen; none when not given.
        allow_ech: let an encrypted ClientHello through. Its real server name cannot be seen, so it can reach other
            sites of the same provider; off when not given.

    Raises InvalidArgument for an entry that is not of these forms: a rule that can never match is never ignored.
    """

    allowed_domains: tuple[str, ...] = ()
    denied_domains: tuple[str, ...] = ()
    ports: frozenset[int] = DEFAULT_PORTS
    tls_ports: frozenset[int] = DEFAULT_TLS_PORTS
    raw_ports: frozenset[int] = frozenset()
    allow_ech: bool = False
    _allowed: tuple[DomainEntry, ...] = field(init=False, repr=False, compare=False)
    _denied: tuple[DomainEntry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_allowed", read_entries("network.allowed_domains", self.allowed_domains))
        object.__setattr__(self, "_denied", read_entries("network.denied_domains", self.denied_domains))
        for name in ("ports", "tls_ports", "raw_ports"):
            if any(not 0 < port < 1 << 16 for port in getattr(self, name)):
                raise InvalidArgument(f"network.{name}", "has a port that is not from 1 to 65535")

    @classmethod
    def from_policy(cls, policy: NetworkPolicy, *, ports: frozenset[int] = DEFAULT_PORTS) -> EgressRules:
        """Return the rules that `policy` grants. Raises InvalidArgument."""
        return cls(policy.allowed_domains, policy.denied_domains, ports=ports)

    def decide(self, host: str, port: int) -> Decision:
        """Return whether `host` (as it was asked for) and `port` may be reached. Never raises."""
        try:
            parsed = parse_host(host)
        except HostRefused as refusal:
            return Decision(False, "host_syntax", refusal.reason, printable_host(host), port)
        return self.decide_host(parsed, port)

    def decide_host(self, host: Host, port: int) -> Decision:
        """Return the decision for a canonical host."""
        text = host_text(host)
        denied = _covering(self._denied, host)
        if denied is not None:
            return Decision(False, f"denied_domains: {denied}", f"{denied} is denied, which wins", text, port)
        allowed = _covering(self._allowed, host)
        if allowed is None:
            what = "name" if isinstance(host, str) else "address; an address must be listed exactly as it is"
            return Decision(False, "allowed_domains", f"no entry covers this {what}", text, port)
        if port not in self.ports and port not in self.raw_ports:
            listed = ", ".join(str(number) for number in sorted(self.ports | self.raw_ports)) or "none"
            return Decision(False, "ports", f"port {port} is not one of the allowed ports ({listed})", text, port)
        return Decision(True, f"allowed_domains: {allowed}", f"{allowed} is allowed", text, port)

    def denies_address(self, address: IpAddress) -> str | None:
        """Return why a resolved address is refused by `denied_domains`, or None."""
        denied = _covering(self._denied, address)
        return None if denied is None else f"{denied} is denied, which wins"

    def port_is_tls_only(self, port: int) -> bool:
        """True when nothing but TLS may be spoken to `port`."""
        return port in self.tls_ports and port not in self.raw_ports


@dataclass(frozen=True, slots=True)
class DomainEntry:
    """One entry of a list of domains: a name, every name below one, or an address."""

    text: str
    host: Host
    wildcard: bool

    def covers(self, host: Host) -> bool:
        """True when the entry is for `host`, which is canonical."""
        if isinstance(host, str) and isinstance(self.host, str):
            return domain_covers(f"*.{self.host}" if self.wildcard else self.host, host)
        return not self.wildcard and self.host == host


def read_entries(field_name: str, texts: tuple[str, ...]) -> tuple[DomainEntry, ...]:
    """Return the entries that `texts` stand for. Raises InvalidArgument, naming the field, for one that is none."""
    entries = []
    for text in texts:
        wildcard = text.startswith("*.")
        try:
            host = parse_host(text.removeprefix("*."))
        except HostRefused as refusal:
            raise InvalidArgument(
                field_name,
                f"{printable_host(text)!r} is not example.com, *.example.com or an address: {refusal.reason}",
            ) from refusal
        if wildcard and not isinstance(host, str):
            raise InvalidArgument(field_name, f"{text!r} puts a wildcard before an address")
        entries.append(DomainEntry(text, host, wildcard))
    return tuple(entries)


def _covering(entries: tuple[DomainEntry, ...], host: Host) -> str | None:
    return next((entry.text for entry in entries if entry.covers(host)), None)
