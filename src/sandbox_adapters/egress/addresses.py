"""Which addresses the proxy may dial. Pure.

Whatever a name resolves to, only addresses of the public internet are dialled: the proxy runs on the host, and could
reach the host itself, its network and its cloud's metadata service. Sources: the IANA special-purpose address
registries (RFC 6890 and later), and the clouds' documentation for metadata addresses that look public.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

from sandbox_adapters.egress.hosts import IpAddress

IpNetwork: TypeAlias = IPv4Network | IPv6Network

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

# The first match gives the reason, so narrow networks stand before wide ones.
_REFUSED: tuple[tuple[IpNetwork, str], ...] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        ("127.0.0.0/8", "loopback"),
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("100.100.100.200/32", "cloud metadata"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("169.254.169.254/32", "cloud metadata"),
        ("169.254.0.0/16", "link-local"),
        ("168.63.129.16/32", "cloud metadata"),
        ("192.0.0.192/32", "cloud metadata"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("198.18.0.0/15", "benchmarking"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "local-use NAT64"),
        ("100::/64", "discard-only"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("fd00:ec2::254/128", "cloud metadata"),
        ("fd20:ce::254/128", "cloud metadata"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_GRANTABLE = frozenset({"private", "carrier-grade NAT", "unique local", "loopback"})
"""Reasons that an operator may set aside for networks of their own."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Judges addresses before they are dialled.

    Args:
        also_refused: the operator's own networks that look public, for example the host's public address or a
            network-specific NAT64 prefix (RFC 6052, section 3.1).
        also_reachable: private networks that may be dialled after all, for example that of an internal mirror. Never
            sets aside anything but private, shared (RFC 6598) and unique local addresses, and loopback ones that are
            given singly; cloud metadata stays refused.
        is_own: tells the addresses of this machine, which are refused whatever they look like, unless
            `also_reachable` gives one singly (/32 or /128). None for a machine without others to be afraid of.
        loopback_reachable_for_tests: lets 127.0.0.0/8 and ::1 through, so that a test can dial its own server. Never
            set it where anything is served: every service on the host's loopback would be within reach.
    """

    also_refused: tuple[IpNetwork, ...] = ()
    also_reachable: tuple[IpNetwork, ...] = ()
    is_own: Callable[[IpAddress], bool] | None = None
    loopback_reachable_for_tests: bool = False

    def refusal(self, address: IpAddress) -> str | None:
        """Return why `address` must not be dialled, as a short noun phrase, or None when it may be."""
        if address.version == 6 and address.scope_id is not None:
            return "an IPv6 zone"
        if any(address in network for network in self.also_refused):
            return "refused by the operator"
        if self.loopback_reachable_for_tests and any(address in network for network in _LOOPBACK):
            return None
        granted = [network for network in self.also_reachable if address in network]
        singly = any(network.num_addresses == 1 for network in granted)
        reason = next((reason for network, reason in _REFUSED if address in network), None)
        if reason is None and address.version == 6 and address not in _GLOBAL_UNICAST:
            reason = "not global unicast"
        set_aside = granted and reason in _GRANTABLE and (reason != "loopback" or singly)
        if reason is not None and not set_aside:
            return reason
        if self.is_own is not None and not singly and self.is_own(address):
            return "an address of this machine"
        return None
