"""EgressSettings: what an operator says about the network of executions that are granted names."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, Field, field_validator
from pydantic_settings import NoDecode

from sandbox_adapters.egress import DEFAULT_PORTS
from sandbox_adapters.egress.addresses import IpNetwork
from sandbox_adapters.egress.hosts import HostRefused, IpAddress, parse_host

_GRANTABLE: tuple[IpNetwork, ...] = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
"""RFC 1918, RFC 6598, RFC 4193."""
_LOOPBACK: tuple[IpNetwork, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_MOST_HOSTS = 10_000

PortList = Annotated[tuple[int, ...], NoDecode]
NetworkList = Annotated[tuple[IpNetwork, ...], NoDecode]
HostTable = Annotated[dict[str, tuple[IpAddress, ...]], NoDecode]


class EgressSettings(BaseModel):
    """Fields that Settings has of it. Errors are ValueErrors without the variable's name, as of every field."""

    egress_ports: PortList = Field(
        default=tuple(sorted(DEFAULT_PORTS)),
        description="Ports that executions with allowed_domains may ask for; separated by commas. On 443 only TLS is "
        "spoken.",
    )
    egress_private_networks: NetworkList = Field(
        default=(),
        description="Private networks, or single addresses, that allowed names may lead to, for internal mirrors; "
        "separated by commas. An address of this machine only when it is given singly.",
    )
    egress_refused_networks: NetworkList = Field(
        default=(),
        description="Networks that no name may lead to although they look public, for example this machine's address "
        "behind a NAT; separated by commas. They win.",
    )
    egress_hosts: HostTable = Field(
        default_factory=dict,
        description='Addresses of names, instead of the resolver\'s: JSON, {"mirror.internal": "10.0.0.5"} or a list '
        "of addresses for a name.",
    )

    @field_validator("egress_ports", "egress_private_networks", "egress_refused_networks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return _from_json(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("egress_ports")
    @classmethod
    def _real_ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for port in value:
            if not 0 < port < 1 << 16:
                raise ValueError(f"{port} is not a port from 1 to 65535")
        return tuple(sorted(set(value)))

    @field_validator("egress_private_networks")
    @classmethod
    def _private(cls, value: tuple[IpNetwork, ...]) -> tuple[IpNetwork, ...]:
        for network in value:
            if _inside(network, _LOOPBACK) and network.num_addresses == 1:
                continue
            if not _inside(network, _GRANTABLE):
                raise ValueError(f"{network} is neither a private network nor a single loopback address")
        return value

    @field_validator("egress_hosts", mode="before")
    @classmethod
    def _table(cls, value: Any) -> Any:
        given = (_from_json(value) if value.strip() else {}) if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise ValueError('must be an object such as {"mirror.internal": "10.0.0.5"}')  # noqa: TRY004 - pydantic's way
        if len(given) > _MOST_HOSTS:
            raise ValueError(f"has {len(given)} names; at most {_MOST_HOSTS} are taken")
        return {_name(name): _addresses(name, found) for name, found in given.items()}


def _inside(network: IpNetwork, others: tuple[IpNetwork, ...]) -> bool:
    for other in others:
        if isinstance(network, IPv4Network) and isinstance(other, IPv4Network) and network.subnet_of(other):
            return True
        if isinstance(network, IPv6Network) and isinstance(other, IPv6Network) and network.subnet_of(other):
            return True
    return False


def _name(text: object) -> str:
    try:
        host = parse_host(str(text))
    except HostRefused as refusal:
        raise ValueError(f"{text!r} is not a host name: {refusal.reason}") from None
    if not isinstance(host, str):
        raise ValueError(f"{text!r} is an address, not a host name")  # noqa: TRY004 - pydantic's way
    return host


def _addresses(name: object, given: object) -> tuple[IpAddress, ...]:
    listed = given if isinstance(given, list | tuple) else [given]
    try:
        found = tuple(ip_address(str(text)) for text in listed)
    except ValueError:
        found = ()
    if not found:
        raise ValueError(f"{name!r} needs an IP address, or a list of them")
    return found


def _from_json(text: str) -> Any:
    try:
        return pydantic_core.from_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
