"""Host names and addresses as text: one canonical form, or a refusal.

Everything that names a host (policy entries, request targets, Host fields, SOCKS names, TLS server names) comes
through `parse_host`, so that two spellings of one host can never be judged differently.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TypeAlias

import idna

IpAddress: TypeAlias = IPv4Address | IPv6Address
Host: TypeAlias = str | IpAddress
"""A canonical host: a lower-case ASCII name without the final dot, or an address."""

MAX_NAME_CHARACTERS = 253
"""Longest name, without the final dot (RFC 1035, section 2.3.4)."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_PORT = re.compile(r"[0-9]{1,5}")
_PRINTED_CHARACTERS = 255


class HostRefused(ValueError):
    """The text is not a host name or address that can be judged. `reason` says why, without the text itself."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_host(text: str) -> Host:
    """Return the canonical host that `text` names.

    Letters are folded, international names become their ASCII form (UTS 46, IDNA 2008), every dot that IDNA knows
    is a dot, and one final dot is dropped. An IPv6 address may stand in brackets. Raises HostRefused for anything
    else, among it every spelling of an IPv4 address but four decimal numbers (inet_aton(3) knows many more).
    """
    if not text:
        raise HostRefused("the host is empty")
    if "%" in text:
        raise HostRefused("percent-encoding and IPv6 zones are not taken in a host")
    if len(text) > MAX_NAME_CHARACTERS + 1:
        raise HostRefused(f"the host is longer than {MAX_NAME_CHARACTERS} characters")
    if any(ord(character) < 0x21 or ord(character) == 0x7F for character in text):
        raise HostRefused("the host has a control character or a space")
    if text.startswith("[") or ":" in text:
        return _parse_ipv6(text)
    return _parse_name(_to_ascii(text))


def split_authority(text: str, default_port: int | None) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[v6]` or `[v6]:port`; the host is not judged yet.

    Raises ValueError for userinfo, which RFC 3986 (section 3.2) allows, for no host, for a port that is not one, and
    for a missing port when `default_port` is None.
    """
    if "@" in text:
        raise ValueError("a user name or password in the address is not taken")
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
    if not host:
        raise ValueError("the host is missing")
    if not colon:
        if default_port is None:
            raise ValueError("the port is missing")
        return host, default_port
    if colon != ":" or not _PORT.fullmatch(port) or not 0 < int(port) < 1 << 16:
        raise ValueError("the port is not a number from 1 to 65535")
    return host, int(port)


def host_text(host: Host) -> str:
    """Return the canonical text: a name, or an address without brackets."""
    return host if isinstance(host, str) else host.compressed


def authority_text(host: Host, port: int, default_port: int | None = None) -> str:
    """Return `host:port` as it stands in a request; the port is left out when it is the default one."""
    text = f"[{host.compressed}]" if isinstance(host, IPv6Address) else host_text(host)
    return text if port == default_port else f"{text}:{port}"


def printable_host(text: str) -> str:
    """Return `text` for a report: ASCII, no control characters, bounded. It may come from hostile code."""
    shown = text[:_PRINTED_CHARACTERS].encode("unicode_escape").decode("ascii")
    return shown[:_PRINTED_CHARACTERS]


def _parse_ipv6(text: str) -> IPv6Address:
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return IPv6Address(inner)
    except AddressValueError as error:
        raise HostRefused("the host is neither a name nor an IPv6 address") from error


def _to_ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    try:
        return idna.encode(text, uts46=True, std3_rules=True, transitional=False).decode("ascii").lower()
    except UnicodeError as error:
        raise HostRefused("the host is not a valid international name") from error


def _parse_name(text: str) -> Host:
    name = text.removesuffix(".")
    labels = name.split(".")
    # The test of the URL standard ("ends in a number") rather than a list of the spellings that inet_aton(3) takes.
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return IPv4Address(name)
        except AddressValueError as error:
            raise HostRefused("an address must be written as four decimal numbers") from error
    if len(name) > MAX_NAME_CHARACTERS or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostRefused("the host is not a valid name")
    return name
