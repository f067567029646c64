"""Secrets: header fields of the operator, and which request of which caller gets them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_adapters.egress.hosts import HostRefused, parse_host
from sandbox_adapters.egress.requests import may_be_injected
from sandbox_adapters.egress.rules import DomainEntry, read_entries
from sandbox_core.domain.errors import InvalidArgument
from sandbox_core.domain.ids import Principal
from sandbox_core.domain.policy import domain_covers

_FIELD_NAME_CHARACTERS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Secret:
    """One header field for some hosts. Its text never shows `value`.

    Args:
        name: the operator's, for messages.
        domains: `example.com`, `*.example.com` (not the apex) or an address, as in `network.allowed_domains`.
        header: the field's name.
        value: the field's value: visible ASCII, spaces inside.
        plain_http: send it over plain HTTP, too, where anybody on the way can read it.
        principals: the callers whose executions get it; None for all.

    Raises InvalidArgument, naming the argument and never showing `value`.
    """

    name: str
    domains: tuple[str, ...]
    header: str
    value: str = field(repr=False)
    plain_http: bool = False
    principals: frozenset[Principal] | None = None
    entries: tuple[DomainEntry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.domains:
            raise InvalidArgument("domains", "is empty: the secret would be for no host")
        object.__setattr__(self, "entries", read_entries("domains", self.domains))
        if not self.header or not _FIELD_NAME_CHARACTERS.issuperset(self.header):
            raise InvalidArgument("header", "is not the name of a header field")
        if not may_be_injected(self.header.encode("ascii")):
            raise InvalidArgument("header", f"{self.header} frames or routes requests and cannot be set")
        if not self.value or self.value != self.value.strip(" ") or not all(" " <= sign <= "~" for sign in self.value):
            raise InvalidArgument("value", "must be visible ASCII characters; spaces may stand inside, nothing else")
        if self.principals is not None and not self.principals:
            raise InvalidArgument("principals", "is empty: the secret would be for nobody; leave it out for all")

    def serves(self, principal: Principal | None) -> bool:
        """True when executions of `principal` get it; None is a caller that nobody named."""
        return self.principals is None or principal in self.principals

    def collides_with(self, other: Secret) -> bool:
        """True when some request could be meant by both, for the same field."""
        if self.header.lower() != other.header.lower():
            return False
        if self.principals is not None and other.principals is not None and not self.principals & other.principals:
            return False
        return any(_overlap(one, two) for one in self.entries for two in other.entries)


class SecretHeaders:
    """The secrets that one execution gets; `plain` and `secure` are HeaderInjectors."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._secrets = tuple(secrets)

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def for_principal(self, principal: Principal | None) -> SecretHeaders:
        """Return those that executions of `principal` get."""
        return SecretHeaders([secret for secret in self._secrets if secret.serves(principal)])

    def entries(self) -> list[DomainEntry]:
        """Return the domains of all."""
        return [entry for secret in self._secrets for entry in secret.entries]

    def plain(self, host: str, _port: int) -> Mapping[str, str]:
        """Return the fields for plain HTTP to a canonical host, whatever the port."""
        return {secret.header: secret.value for secret in self._covering(host) if secret.plain_http}

    def secure(self, host: str, _port: int) -> Mapping[str, str]:
        """Return the fields for a request inside verified TLS to a canonical host, whatever the port."""
        return {secret.header: secret.value for secret in self._covering(host)}

    def _covering(self, host: str) -> Iterator[Secret]:
        try:
            parsed = parse_host(host)
        except HostRefused:
            return
        for secret in self._secrets:
            if any(entry.covers(parsed) for entry in secret.entries):
                yield secret


def colliding(secrets: Sequence[Secret]) -> tuple[Secret, Secret] | None:
    """Return the first two that a request could get for the same field, None when every request is clear."""
    for index, secret in enumerate(secrets):
        for other in secrets[:index]:
            if secret.collides_with(other):
                return other, secret
    return None


def _overlap(one: DomainEntry, two: DomainEntry) -> bool:
    if not isinstance(one.host, str) or not isinstance(two.host, str):
        return one.host == two.host
    first = f"*.{one.host}" if one.wildcard else one.host
    second = f"*.{two.host}" if two.wildcard else two.host
    return domain_covers(first, second) or domain_covers(second, first)
